-- What operators do with a relay, and what retention has done.

-- Single events that the operator has given up; the relay takes them over at its next start.
alter table relay add column if not exists given_up jsonb;
-- Raised whenever a command changes the relay's rows in relay_topic: the leader then reads them anew.
alter table relay add column if not exists topic_changes bigint not null default 0;

-- A topic that is being grown: its relays hold back what goes to it until the command is done, or the hold is over.
alter table relay_topic add column if not exists hold uuid;
alter table relay_topic add column if not exists hold_until timestamptz;
-- Everything that the relay had sent to it is durable, and nothing more is sent.
alter table relay_topic add column if not exists hold_acknowledged boolean not null default false;

-- One row. Whoever deletes events, or moves a relay to where it would need deleted ones, locks it first.
create table if not exists retention (
    single boolean primary key default true,
    -- Events of transactions below it may be gone.
    floor xid8 not null default '0',
    deleted bigint not null default 0,
    deleted_at timestamptz,

    constraint retention_single_row check (single)
);

insert into retention default values on conflict do nothing;

comment on table retention is 'Up to where published events may have been deleted from the outbox.';

-- Whether the event that transaction `xid` inserted as `seq` is published, or given up, as far as a relay's position says.
create or replace function is_published(relay_position jsonb, xid xid8, seq bigint) returns boolean
    language sql stable parallel safe
    return coalesce(
        pg_visible_in_snapshot(xid, (relay_position ->> 'seen')::pg_snapshot)
        or (relay_position ->> 'also')::int8multirange @> xid::text::bigint
        or (seq <= (relay_position #>> '{window,after}')::bigint and pg_visible_in_snapshot(xid, (relay_position #>> '{window,to}')::pg_snapshot))
        or (xid::text = relay_position #>> '{partial,xid}' and seq <= (relay_position #>> '{partial,seq}')::bigint)
        or relay_position -> 'given_up' @> jsonb_build_array(jsonb_build_object('seq', seq)),
        false);
