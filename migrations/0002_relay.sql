-- What each relay has done, and which database and cluster it did it with. One row a relay, written by the leader alone.

create table if not exists relay (
    name text primary key,
    -- Bumped at each take-over; every write of a relay checks that it still holds the epoch it started with.
    epoch bigint not null default 0,
    leader text,
    heartbeat_at timestamptz,
    -- Identity: the position below means something in this database only.
    system_identifier text,
    database_oid bigint,
    timeline int,
    -- Position in the write-ahead log: `ordinal` events of the transaction that committed at `commit_lsn` are published.
    commit_lsn pg_lsn,
    ordinal bigint not null default 0,
    -- The rows that were there before the log was followed: those that `snapshot` sees, of which all up to `snapshot_after`
    -- are published. Null once they all are.
    snapshot pg_snapshot,
    snapshot_after bigint,
    -- Witness: the last published row. Retention keeps it, so that its absence proves lost commits.
    witness_id uuid,
    witness_seq bigint,
    witness_xid xid8,
    kafka_cluster_id text,
    published bigint not null default 0,
    updated_at timestamptz not null default clock_timestamp(),

    constraint relay_name_length check (octet_length(name) between 1 and 63),
    constraint relay_ordinal_not_negative check (ordinal >= 0),
    constraint relay_published_not_negative check (published >= 0)
);

comment on table relay is 'One row per relay: its leader, its position and what that position belongs to.';

create table if not exists relay_topic (
    relay text not null references relay (name) on delete cascade,
    topic text not null,
    -- The partition count keys are spread over, pinned at first use: growing a topic would move keys.
    partitions int not null,
    published bigint not null default 0,

    primary key (relay, topic),
    constraint relay_topic_partitions_positive check (partitions > 0),
    constraint relay_topic_published_not_negative check (published >= 0)
);

comment on table relay_topic is 'Per relay and topic: the pinned partition count and how many events were published.';
