-- Which code runs the sagas of each name. A subscriber is admitted if it has run them before, or if its definition is one that is
-- registered. Two definitions under one name would each leave out the other's steps.
create table if not exists saga_code (
    -- The saga's name.
    name text collate "C" not null,
    -- The subscriber, a consumer group.
    consumer text collate "C" not null,
    -- A hash of version, steps, commands and replies.
    definition text collate "C" not null,
    version int not null,
    -- Each step with the event types that it sends and that answer it.
    steps jsonb not null,
    first_seen_at timestamptz not null default now(),
    -- The last heartbeat.
    seen_at timestamptz not null default now(),

    primary key (name, consumer, definition),
    constraint saga_code_lengths check (octet_length(name) between 1 and 255 and octet_length(consumer) between 1 and 255)
)
-- Heartbeats update few rows often: without a full page, and without index entries.
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

comment on table saga_code is 'Which subscribers run the sagas of each name, by which definitions.';

-- Roles that run sagas may register their code.
do $$
declare grantee_name text;
begin
    for grantee_name in
        select distinct case when grants.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grants.grantee)) end
        from pg_class c, aclexplode(c.relacl) grants
        where c.oid = 'saga'::regclass and grants.privilege_type = 'INSERT' and grants.grantee <> c.relowner
    loop
        execute format('grant select, insert, update, delete on saga_code to %s', grantee_name);
    end loop;
    -- Roles that read sagas may read which code runs them.
    for grantee_name in
        select distinct case when grants.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grants.grantee)) end
        from pg_class c, aclexplode(c.relacl) grants
        where c.oid = 'saga'::regclass and grants.privilege_type = 'SELECT' and grants.grantee <> c.relowner
    loop
        execute format('grant select on saga_code to %s', grantee_name);
    end loop;
end $$;

-- Why the code that runs cannot continue the saga: it does not know the step, or cannot read the state. Null once code has continued it.
alter table saga add column if not exists obstacle text;

-- For an application `app` that runs sagas:
--
--   grant select, insert, update, delete on tidings.saga, tidings.saga_code to app;
--   grant select, insert, delete on tidings.saga_lock to app;
