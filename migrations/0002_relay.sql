-- What each relay has done, and which database and cluster it did it with. One row a relay, written by the leader alone.

create table if not exists relay (
    name text primary key,
    -- Bumped at each take-over; every write of a relay checks that it still holds the epoch it started with.
    epoch bigint not null default 0,
    leader text,
    heartbeat_at timestamptz,
    -- What it reads now, `wal` or `table`, and why.
    source text,
    source_reason text,
    delivery text,
    -- What the position is a position in: system identifier, database oid, timeline.
    identity jsonb,
    -- Which events are published (see `is_published`). With delivery exactly once this is a copy, a second old at most, of what
    -- the relay's own Kafka topic holds, and `number` is the number of its record there.
    position jsonb,
    number bigint not null default 0,
    position_epoch bigint not null default 0,
    kafka_cluster_id text,
    -- Where the operator has moved the position to; the relay takes it over at its next start.
    moved_to jsonb,
    published bigint not null default 0,
    updated_at timestamptz not null default clock_timestamp(),

    constraint relay_name_length check (octet_length(name) between 1 and 63),
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
