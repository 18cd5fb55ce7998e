-- The outbox: one row per event, inserted in the transaction that changes the aggregate.
--
-- Names are unqualified: run with `search_path` set to the schema that shall hold the tables and to nothing else.
-- By hand:
--
--   psql -v ON_ERROR_STOP=1 -1 -c 'create schema if not exists tidings' -c 'set local search_path to tidings' \
--        -f migrations/0001_outbox.sql -f migrations/0002_relay.sql
--
-- Column names are the defaults of Debezium's EventRouter. The table is insert-only for everybody but retention.

create table if not exists outbox (
    -- Insertion order. CACHE 1: with a larger cache two sessions number their events out of order.
    seq bigint generated always as identity (cache 1) primary key,
    -- The event's id, the record's `ce_id`. The default is a UUIDv7 on every supported server: a v4 whose first 48 bits
    -- are the Unix time in milliseconds and whose version bits say 7 (RFC 9562, section 5.7).
    id uuid not null default encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                from 1 for 6),
            52, 1), 53, 1), 'hex')::uuid,
    -- What the event is about. The id is the Kafka key, so events of one aggregate stay in order.
    aggregatetype text not null,
    aggregateid text not null,
    -- The event's name, and the version of its payload's schema.
    type text not null,
    version int not null default 1,
    -- The data: JSON kept exactly as written (hence json and not jsonb), or bytes (Avro, Protobuf).
    -- Neither is a tombstone: a record with a null value, which deletes the key on a compacted topic.
    payload json,
    payload_bytes bytea,
    -- Correlation and causation ids, trace context and the application's own, as a flat object of strings.
    headers jsonb not null default '{}',
    -- When it happened. Not now(): that is when the transaction began, before it waited for any lock.
    occurred_at timestamptz not null default clock_timestamp(),
    -- Overrides the topic the relay would choose.
    topic text,
    -- The transaction that wrote the row: lets a poller know that it has seen everything.
    xid xid8 not null default pg_current_xact_id(),

    constraint outbox_id_unique unique (id),
    constraint outbox_aggregatetype_length check (octet_length(aggregatetype) between 1 and 249),
    constraint outbox_aggregateid_length check (octet_length(aggregateid) between 1 and 1024),
    constraint outbox_type_length check (octet_length(type) between 1 and 255),
    constraint outbox_version_positive check (version > 0),
    constraint outbox_one_payload check (payload is null or payload_bytes is null),
    -- Bounds what a relay must hold for one row, whoever wrote it: 16 MiB of payload, 64 KiB of headers.
    constraint outbox_payload_size check (octet_length(payload::text) <= 16777216),
    constraint outbox_payload_bytes_size check (octet_length(payload_bytes) <= 16777216),
    constraint outbox_headers_object check (jsonb_typeof(headers) = 'object'),
    constraint outbox_headers_size check (octet_length(headers::text) <= 65536),
    -- Kafka's own rule for topic names.
    constraint outbox_topic_name check (topic ~ '^[a-zA-Z0-9._-]{1,249}$' and topic not in ('.', '..'))
);

create index if not exists outbox_xid_seq on outbox (xid, seq);

comment on table outbox is 'Events waiting for, or kept after, the relay to Kafka. Insert-only: retention alone deletes.';

-- Least privilege. Roles are yours, so none is created here; for an application `app` and a relay `relay`:
--
--   grant usage on schema tidings to app, relay;
--   grant insert (id, aggregatetype, aggregateid, type, version, payload, payload_bytes, headers, occurred_at, topic)
--       on tidings.outbox to app;
--   grant select, delete on tidings.outbox to relay;
--   grant select, insert, update, delete on tidings.relay, tidings.relay_topic to relay;
--   grant select on tidings._tidings_migrations to app, relay;
--
-- Nobody is granted insert on `seq` and `xid`: order and completeness rest on their defaults.
-- The relay's role also needs the attribute REPLICATION, and creating the publication needs the table's owner.
