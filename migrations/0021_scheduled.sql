-- Events that are not due yet. When one is, a relay moves it to the outbox: the row is deleted here and inserted there by one statement.

-- The columns and the checks of the outbox: what is scheduled fits the outbox when it is due.
create table if not exists scheduled (
    like outbox including defaults including constraints,
    -- Not before this time is it published.
    due_at timestamptz not null,
    -- In which order events are published that are due at the same time.
    number bigint not null generated always as identity (cache 1),

    constraint scheduled_pkey primary key (id),
    constraint scheduled_due_at_finite check (isfinite(due_at))
);

-- Drawn in the outbox.
alter table scheduled drop column if exists seq, drop column if exists xid;
-- Null: the time at which it is due.
alter table scheduled alter column occurred_at drop default, alter column occurred_at drop not null;

create index if not exists scheduled_due on scheduled (due_at, number);

comment on table scheduled is 'Events that are published when they are due. Deleting a row cancels it.';

-- Least privilege, for an application's role `app` and a relay's role `relay`:
--
--   grant insert (id, aggregatetype, aggregateid, type, version, payload, payload_bytes, headers, occurred_at, topic, due_at)
--       on tidings.scheduled to app;
--   grant select (id), delete on tidings.scheduled to app;                -- to cancel
--   grant select, update, delete on tidings.scheduled to relay;           -- update: to lock what is due
--   grant insert (id, aggregatetype, aggregateid, type, version, payload, payload_bytes, headers, occurred_at, topic)
--       on tidings.outbox to relay;
