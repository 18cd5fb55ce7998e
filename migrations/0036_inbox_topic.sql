-- The topic an event was first read from, and a hash of its key, type and data. Null in rows of earlier versions, which count for their
-- source and id on every topic. The primary key stays: an earlier version of a service that runs beside a newer one finds the rows of both.
alter table inbox
    add column if not exists topic text collate "C",
    add column if not exists fingerprint bigint;

-- Events whose source and id another topic of the same consumer had used before. Such an event is another one, so its identity includes
-- its topic. The row in `inbox` belongs to the first topic.
create table if not exists inbox_collision (
    consumer text collate "C" not null,
    topic text collate "C" not null,
    source text collate "C" not null,
    event_id text collate "C" not null,
    handled_at timestamptz not null default now(),
    fingerprint bigint,

    primary key (consumer, topic, source, event_id),
    constraint inbox_collision_lengths check (
        octet_length(consumer) between 1 and 255 and octet_length(topic) between 1 and 255
        and octet_length(source) <= 1024 and octet_length(event_id) between 1 and 512)
);

create index if not exists inbox_collision_handled_at on inbox_collision (consumer, handled_at);

comment on table inbox_collision is 'Which events each consumer has handled whose source and id another topic had used before.';

-- Roles that may use the inbox may use this table too.
do $$
declare grantee_name text;
begin
    for grantee_name in
        select distinct case when grants.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grants.grantee)) end
        from pg_class c, aclexplode(c.relacl) grants
        where c.oid = 'inbox'::regclass and grants.privilege_type = 'INSERT' and grants.grantee <> c.relowner
    loop
        execute format('grant select, insert, update, delete on inbox_collision to %s', grantee_name);
    end loop;
end $$;
