-- Parked ranges, and events that wait for a topic.
--
-- A row with `to_seq` stands for `events` events: those of its aggregate that the outbox holds from `seq` to `to_seq`. A row with
-- `waits_for` waits for that topic, which cannot be used, and not with its aggregate; the relay releases it as soon as it can.
-- Whoever deletes from the outbox keeps what is parked:
--   and not exists (select from parked p where p.seq = outbox.seq)
--   and not exists (select from parked p where p.to_seq is not null and p.aggregatetype = outbox.aggregatetype
--                   and p.aggregateid = outbox.aggregateid and outbox.seq between p.seq and p.to_seq)

alter table parked
    add column if not exists to_seq bigint,
    add column if not exists events bigint not null default 1,
    add column if not exists waits_for text;

create index if not exists parked_range on parked (aggregatetype, aggregateid, seq, to_seq) where to_seq is not null;
create index if not exists parked_waits_for on parked (relay, waits_for, seq) where waits_for is not null;
