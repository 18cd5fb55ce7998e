-- What `tidings verify` needs to know in addition to the outbox and the positions: the decisions by which the topics
-- differ from the outbox on purpose, and how young the events are that retention has deleted.

-- No deleted event is younger. Null: none was deleted.
alter table retention add column if not exists deleted_until timestamptz;
update retention set deleted_until = deleted_at where deleted > 0 and deleted_until is null;

-- Written by the triggers below alone. Not a foreign key: a relay that was forgotten and is created again publishes the
-- events that it has published before, and that is a decision too.
create table if not exists relay_decision (
    number bigint generated always as identity primary key,
    relay text not null,
    -- `discard` and `skip` leave out single events. `move` changes the position, `forget` deletes it.
    kind text not null,
    made_at timestamptz not null default clock_timestamp(),
    -- The event, or with `to_seq` a range of the aggregate's events.
    seq bigint,
    to_seq bigint,
    aggregatetype text,
    aggregateid text,
    -- The positions before and after, the database that they belong to, and the transactions that had ended.
    before jsonb,
    after jsonb,
    identity jsonb,
    visible pg_snapshot,

    constraint relay_decision_kind_known check (kind in ('discard', 'skip', 'move', 'forget'))
);

comment on table relay_decision is 'Events that an operator has left out or repeated on purpose.';

do $migration$
begin
    -- They run with the rights of the owner, since the roles of relays and operators need not write the table. Decisions about
    -- events that the outbox no longer contains are deleted, so that the table stays small.
    execute format($function$
        create or replace function %1$I.note_discards() returns trigger
            language plpgsql security definer set search_path = pg_catalog, pg_temp
            as $$
        begin
            if not exists (select from gone where action = 'discard') then
                return null;
            end if;
            insert into %1$I.relay_decision (relay, kind, seq, to_seq, aggregatetype, aggregateid)
                select relay, 'discard', seq, to_seq, aggregatetype, aggregateid from gone where action = 'discard';
            delete from %1$I.relay_decision where coalesce(to_seq, seq) < (select min(seq) from %1$I.outbox);
            return null;
        end $$
    $function$, current_schema());
    execute format($function$
        create or replace function %1$I.note_move() returns trigger
            language plpgsql security definer set search_path = pg_catalog, pg_temp
            as $$
        begin
            if tg_op = 'DELETE' then
                insert into %1$I.relay_decision (relay, kind, before, identity, visible)
                    values (old.name, 'forget', old.position, old.identity, pg_current_snapshot());
                return null;
            end if;
            if new.moved_to is not null and new.moved_to is distinct from old.moved_to then
                insert into %1$I.relay_decision (relay, kind, before, after, identity, visible)
                    values (new.name, 'move', coalesce(old.moved_to, old.position), new.moved_to, old.identity, pg_current_snapshot());
            end if;
            insert into %1$I.relay_decision (relay, kind, seq)
                select new.name, 'skip', (event ->> 'seq')::bigint from jsonb_array_elements(coalesce(new.given_up, '[]')) event
                where not coalesce(old.given_up, '[]') @> jsonb_build_array(event);
            delete from %1$I.relay_decision where pg_snapshot_xmax(visible) <= (select min(xid) from %1$I.outbox);
            return null;
        end $$
    $function$, current_schema());
end $migration$;

revoke execute on function note_discards() from public;
revoke execute on function note_move() from public;

drop trigger if exists parked_note_discards on parked;
create trigger parked_note_discards after delete on parked
    referencing old table as gone for each statement execute function note_discards();
drop trigger if exists relay_note_move on relay;
create trigger relay_note_move after update of moved_to, given_up on relay
    for each row when (
        new.moved_to is not null and new.moved_to is distinct from old.moved_to
        or new.given_up is not null and new.given_up is distinct from old.given_up)
    execute function note_move();
drop trigger if exists relay_note_forget on relay;
create trigger relay_note_forget after delete on relay
    for each row execute function note_move();

-- Least privilege, for a role `auditor` that runs `tidings verify`:
--
--   grant usage on schema tidings to auditor;
--   grant select on tidings.outbox, tidings.scheduled, tidings.relay, tidings.relay_topic, tidings.parked,
--       tidings.retention, tidings.relay_decision to auditor;
