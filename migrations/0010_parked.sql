-- Events that wait because one of their aggregate cannot be delivered. References only: the event itself stays in the outbox.
--
-- Written by the leading relay; a person sets `action` alone (`tidings parked retry|discard`), and the leader acts on it.
-- Whoever deletes from the outbox keeps what is parked: `and not exists (select from parked p where p.seq = outbox.seq)`.

create table if not exists parked (
    relay text not null references relay (name) on delete cascade,
    -- The event in the outbox. Not a foreign key: publishers must not wait for it, and a row that was deleted by hand is reported.
    seq bigint not null,
    id uuid not null,
    aggregatetype text not null,
    aggregateid text not null,
    -- Where it would go.
    topic text,
    -- Why it cannot be delivered. Null: nothing is wrong with it, it waits behind an earlier event of its aggregate.
    reason text,
    -- What a person has decided.
    action text,
    -- How often it was tried.
    tries int not null default 0,
    parked_at timestamptz not null default clock_timestamp(),

    primary key (relay, seq),
    constraint parked_action_known check (action in ('retry', 'discard'))
);

-- An aggregate's events in their order; what is decided; retention's question.
create index if not exists parked_aggregate on parked (relay, aggregatetype, aggregateid, seq);
create index if not exists parked_action on parked (relay) where action is not null;
create index if not exists parked_seq on parked (seq);
create index if not exists parked_id on parked (id);

comment on table parked is 'Per relay: events that wait, by reference. The outbox keeps their rows until they are released or given up.';

-- Least privilege, for a relay's role `relay`:
--
--   grant select, insert, update, delete on tidings.parked to relay;
