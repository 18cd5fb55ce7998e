-- With which secret each relay signs its positions. They are records of a Kafka topic, to which others may be able to
-- write: a relay goes on from a position only if it has signed it.
--
-- A table of its own, since others than the relay may read `relay` (the health check of a service, a dashboard).

create table if not exists relay_secret (
    -- Not a foreign key: a relay that was forgotten and comes back still knows its own records.
    relay text primary key,
    -- 244 random bits.
    secret bytea not null default decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'),
    -- Every record that this relay has written since is signed. Until then it accepts the records of a version that
    -- did not sign, as far as they follow from the position in the table `relay`.
    signs boolean not null default false,

    constraint relay_secret_length check (octet_length(secret) >= 16)
);

comment on table relay_secret is 'The secret with which each relay signs its positions. For the role of the relay alone.';

insert into relay_secret (relay) select name from relay on conflict do nothing;

-- Roles that write the table `relay` are those of relays: they get what they need here, too.
do $$
declare
    grantee text;
begin
    for grantee in
        select distinct case acl.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(acl.grantee)) end
        from pg_class c cross join aclexplode(c.relacl) acl
        where c.oid = 'relay'::regclass and acl.privilege_type = 'UPDATE' and acl.grantee <> c.relowner
    loop
        execute format('grant select, insert, update on relay_secret to %s', grantee);
    end loop;
end $$;

-- Least privilege, for a relay's role `relay`:
--
--   grant select, insert, update on tidings.relay_secret to relay;
