-- What would lose events without an error is prevented where it happens.

-- A relay that reads the table finds new rows by their transaction. A row that is copied here with the transaction
-- of another server (logical replication, a data-only restore) looks as old as that number is, and might never be
-- found: it gets the number of the transaction that inserts it. `always`: also for logical replication, for which other
-- triggers are off. The function is called for such rows alone; the condition costs well below a microsecond a row.
create or replace function own_transaction() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp
    as $$
begin
    new.xid := pg_current_xact_id();
    return new;
end $$;

drop trigger if exists outbox_own_transaction on outbox;
create trigger outbox_own_transaction before insert on outbox
    for each row when (new.xid is distinct from pg_current_xact_id()) execute function own_transaction();
alter table outbox enable always trigger outbox_own_transaction;

-- A delete or truncate that takes an event which a relay still needs is an error: the relay has not published it, was
-- moved back to before it, or keeps it parked. It runs with the rights of the owner, since a role that deletes need not be
-- allowed to read the tables of relays; therefore every name is qualified, and no other role may attach it to a table.
do $migration$
declare
    -- The first event of %2$s that a relay needs.
    needed constant text := $query$
        with relays as materialized (
            select name, position, moved_to,
                least(coalesce(pg_snapshot_xmin((position ->> 'seen')::pg_snapshot), '0'),
                    case when moved_to is not null then coalesce(pg_snapshot_xmin((moved_to ->> 'seen')::pg_snapshot), '0') end) as below
            from %1$I.relay where table_name is null
        )
        select o.id, o.seq, r.name as relay into lost from relays r join %2$s o on o.xid >= r.below
        where not (%1$I.is_published(coalesce(r.position, '{}'), o.xid, o.seq)
            and (r.moved_to is null or %1$I.is_published(r.moved_to, o.xid, o.seq)))
        union all
        select o.id, o.seq, p.relay from %1$I.parked p join %2$s o on o.seq = p.seq
        limit 1
    $query$;
begin
    execute format($function$
        create or replace function %1$I.refuse_loss() returns trigger
            language plpgsql security definer set search_path = pg_catalog, pg_temp
            as $$
        declare
            lost record;
        begin
            if current_setting('tidings.delete_unpublished', true) = 'on' then
                return null;
            end if;
            if tg_op = 'DELETE' then
                %2$s;
            else
                %3$s;
            end if;
            if found then
                raise exception 'event %% (seq %%) of %%.outbox is still needed by relay %%', lost.id, lost.seq, tg_table_schema, lost.relay
                    using errcode = 'object_in_use',
                        detail = 'The relay has not published the event yet, or keeps it parked.',
                        hint = format('Leave published events to the relay, which deletes them when they are old: an insert needs no delete. '
                            'If relay %%s is gone for good, run: tidings relay forget %%s. '
                            'To lose the events on purpose: set local tidings.delete_unpublished = on.', lost.relay, lost.relay);
            end if;
            return null;
        end $$
    $function$, current_schema(), format(needed, current_schema(), 'gone'), format(needed, current_schema(), format('%I.outbox', current_schema())));
end $migration$;

revoke execute on function refuse_loss() from public;

drop trigger if exists outbox_refuse_delete on outbox;
create trigger outbox_refuse_delete after delete on outbox
    referencing old table as gone for each statement execute function refuse_loss();
drop trigger if exists outbox_refuse_truncate on outbox;
create trigger outbox_refuse_truncate before truncate on outbox
    for each statement execute function refuse_loss();
