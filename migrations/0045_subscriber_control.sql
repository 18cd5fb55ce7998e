-- Decisions of operators about subscribers: a pause of the whole subscriber, and marks on its parked events.

-- One row per paused subscriber. Its members read it every second.
create table if not exists subscriber_control (
    -- The subscriber's name, its consumer group.
    consumer text collate "C" primary key,
    paused_since timestamptz not null default now(),
    -- As the operator gave it.
    reason text,
    -- The operator, and the role of the session.
    paused_by text not null,

    constraint subscriber_control_lengths check (
        octet_length(consumer) between 1 and 255 and octet_length(reason) <= 4000 and octet_length(paused_by) <= 512)
);

comment on table subscriber_control is 'Subscribers that an operator has paused: their members handle no event until the row is deleted.';

-- The pause that an instance has applied: it starts no event. Null while it handles events.
alter table subscriber add column if not exists paused_since timestamptz;

-- The decision of an operator about a parked event, `retry` or `discard`. The owner of the partition executes it on the lane of the
-- aggregate, so an event that is being handled is never discarded at the same time.
alter table subscriber_parked add column if not exists action text;
alter table subscriber_parked add column if not exists decided_by text;
alter table subscriber_parked drop constraint if exists subscriber_parked_action_known;
alter table subscriber_parked add constraint subscriber_parked_action_known check (action in ('retry', 'discard')) not valid;

-- The marks of an aggregate. As in subscriber_parked_heads, the index contains the first bytes of the key.
create index if not exists subscriber_parked_decided
    on subscriber_parked (consumer, topic, partition, substring(key, 1, 512), seq) where action is not null;

-- Roles that may use the inbox may read pauses.
do $$
declare grantee_name text;
begin
    for grantee_name in
        select distinct case when grants.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grants.grantee)) end
        from pg_class c, aclexplode(c.relacl) grants
        where c.oid = 'inbox'::regclass and grants.privilege_type = 'INSERT' and grants.grantee <> c.relowner
    loop
        execute format('grant select on subscriber_control to %s', grantee_name);
    end loop;
end $$;

-- For an application `app` that subscribes:
--
--   grant select on tidings.subscriber_control to app;
--
-- For a role `operator` that pauses subscribers, and retries and discards their parked events:
--
--   grant usage on schema tidings to operator;
--   grant select, insert, delete on tidings.subscriber_control to operator;
--   grant select, update (action, decided_by) on tidings.subscriber_parked to operator;
--   grant select on tidings.subscriber, tidings.saga_code, tidings.inbox to operator;
