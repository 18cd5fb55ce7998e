-- What subscribers have handled, and what they have set aside.

-- One row per handled event and consumer, inserted by the transaction that also has the handler's effect.
create table if not exists inbox (
    -- The subscriber's name, its consumer group.
    consumer text not null,
    -- Who published the event, and its id, unique within that source (`ce_source`, `ce_id`).
    source text not null,
    event_id text not null,
    handled_at timestamptz not null default now(),

    primary key (consumer, source, event_id),
    constraint inbox_consumer_length check (octet_length(consumer) between 1 and 255),
    constraint inbox_source_length check (octet_length(source) <= 1024),
    constraint inbox_event_id_length check (octet_length(event_id) between 1 and 512)
)
-- Retention deletes as much as is inserted. Vacuum early, so that the room is used again and the table does not grow.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- What retention looks for.
create index if not exists inbox_handled_at on inbox (consumer, handled_at);

comment on table inbox is 'Which events each consumer has handled. A row commits together with the effect.';

-- Events whose aggregate waits: one that failed too often, and the later ones of its aggregate. Handled from here, in order.
create table if not exists detour (
    -- Order within an aggregate.
    seq bigint generated always as identity primary key,
    consumer text not null,
    topic text not null,
    partition int not null,
    record_offset bigint not null,
    record_timestamp bigint not null,
    -- The record as it came.
    key bytea not null,
    value bytea,
    header_names text[] not null default '{}',
    header_values bytea[] not null default '{}',
    -- What happened when it was tried. The first of an aggregate alone is tried.
    attempts int not null default 0,
    next_attempt_at timestamptz not null default now(),
    error text,
    since timestamptz not null default now(),

    constraint detour_once unique (consumer, topic, partition, record_offset)
);

-- The first of each aggregate, for the owner of the partition.
create index if not exists detour_heads on detour (consumer, topic, partition, key, seq);

comment on table detour is 'Events of aggregates that wait behind one that failed too often; the owner of the partition handles them from here.';

-- For an application `app` that subscribes:
--
--   grant select, insert, update, delete on tidings.inbox, tidings.detour to app;
