-- The instances of each subscriber, with the event types they handle. An instance of an earlier version does not skip a type that
-- another instance of its group handles.
create table if not exists subscriber (
    -- The subscriber's name, its consumer group.
    consumer text collate "C" not null,
    -- One run of the subscriber.
    instance uuid not null,
    -- Host name and process id, for operators.
    host text not null,
    -- The version of its code, and when an instance of this version was first seen.
    version text collate "C" not null,
    version_since timestamptz not null,
    types text[] not null,
    topics text[] not null,
    escalation text not null,
    started_at timestamptz not null default now(),
    -- The last heartbeat.
    seen_at timestamptz not null default now(),
    -- Null while it runs, and if it was killed.
    stopped_at timestamptz,

    primary key (consumer, instance),
    constraint subscriber_lengths check (octet_length(consumer) between 1 and 255 and octet_length(version) <= 255)
)
-- Heartbeats update few rows often: without a full page, and without index entries.
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

comment on table subscriber is 'Which instances of each subscriber run or ran in the last week, and which event types they handle.';

-- Roles that may use the inbox may use this table too.
do $$
declare grantee_name text;
begin
    for grantee_name in
        select distinct case when grants.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grants.grantee)) end
        from pg_class c, aclexplode(c.relacl) grants
        where c.oid = 'inbox'::regclass and grants.privilege_type = 'INSERT' and grants.grantee <> c.relowner
    loop
        execute format('grant select, insert, update, delete on subscriber to %s', grantee_name);
    end loop;
end $$;

-- For an application `app` that subscribes:
--
--   grant select, insert, update, delete on tidings.subscriber, tidings.inbox_collision to app;
