-- Facts about the server, the relay's tables and the role's rights. One row.
-- $1 is the schema. $2 and $3 are schema and name of the table that events are read from.
select
    current_setting('server_version_num')::int as version_number,
    current_setting('server_version') as version,
    pg_is_in_recovery() as in_recovery,
    current_setting('transaction_read_only')::boolean as read_only,
    current_setting('server_encoding') as encoding,
    current_setting('wal_level') as wal_level,
    current_setting('max_replication_slots')::int as slots_max,
    (select count(*) from pg_replication_slots)::int as slots_used,
    current_setting('max_wal_senders')::int as senders_max,
    (select count(*) from pg_stat_replication)::int as senders_used,
    (select setting::bigint from pg_settings
     where name = 'max_slot_wal_keep_size') as slot_wal_keep_megabytes,
    current_user::text as role,
    current_database()::text as database,
    role.rolsuper as superuser,
    role.rolreplication
        or exists (select from pg_roles cloud
            where cloud.rolname = 'rds_replication' and pg_has_role(cloud.oid, 'member'))
        as replication,
    outbox.oid is not null as outbox_exists,
    outbox.relkind::text as outbox_kind,
    outbox.relpersistence::text as outbox_persistence,
    exists (select from pg_inherits i where i.inhparent = outbox.oid) as outbox_has_children,
    (select coalesce(json_object_agg(
         a.attname, format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null)), '{}')
     from pg_attribute a join pg_type t on t.oid = a.atttypid
     where a.attrelid = outbox.oid and a.attnum > 0 and not a.attisdropped) as outbox_columns,
    exists (select from pg_index i
        where i.indrelid = outbox.oid and i.indisvalid and i.indpred is null
            and (select array_agg(a.attname::text order by k.place)
                 from unnest(i.indkey::int2[]) with ordinality k (attnum, place)
                 join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                 where k.place <= 2) = array['xid', 'seq'])
        as outbox_is_indexed,
    (select coalesce(json_agg(t.tgname order by t.tgname), '[]') from pg_trigger t
     where t.tgrelid = outbox.oid and not t.tgisinternal and t.tgenabled in ('D', 'R'))
        as outbox_disabled_triggers,
    -- The sequence that numbers events. Looked up in the catalog, because a function would need
    -- rights on the schema.
    (select json_build_object(
         'name', q.oid::regclass::text, 'cache', s.seqcache, 'increment', s.seqincrement,
         'cycles', s.seqcycle)
     from pg_attribute a
     join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid
         and d.refobjsubid = a.attnum
         and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')
     join pg_class q on q.oid = d.objid and q.relkind = 'S'
     join pg_sequence s on s.seqrelid = q.oid
     where a.attrelid = outbox.oid and a.attname = 'seq' and not a.attisdropped limit 1)
        as outbox_sequence,
    -- Tables with rows that row level security hides from this role.
    (select coalesce(json_agg(
         n.nspname || '.' || c.relname order by c.oid = outbox.oid desc, c.relname), '[]')
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where row_security_active(c.oid)
         and (c.oid = outbox.oid
             or (c.relnamespace = namespace.oid and c.relname in (
                 'relay', 'relay_topic', 'relay_secret', 'parked', 'retention', 'scheduled'))))
        as hidden,
    has_schema_privilege(namespace.oid, 'usage') as schema_usage,
    has_schema_privilege(outbox_namespace.oid, 'usage') as outbox_schema_usage,
    has_table_privilege(outbox.oid, 'select') as outbox_select,
    has_table_privilege(relay.oid, 'select')
    and has_table_privilege(relay.oid, 'insert')
    and has_table_privilege(relay.oid, 'update') as relay_write,
    has_table_privilege(relay_topic.oid, 'select')
    and has_table_privilege(relay_topic.oid, 'insert')
    and has_table_privilege(relay_topic.oid, 'update') as relay_topic_write,
    has_table_privilege(relay_secret.oid, 'select')
    and has_table_privilege(relay_secret.oid, 'insert')
    and has_table_privilege(relay_secret.oid, 'update') as relay_secret_write,
    exists (select from pg_trigger t
        where t.tgrelid = outbox.oid and t.tgname = 'outbox_own_transaction' and t.tgenabled = 'A')
        as own_transactions,
    (extract(epoch from clock_timestamp()) * 1000)::bigint as clock,
    has_table_privilege(parked.oid, 'select')
    and has_table_privilege(parked.oid, 'insert')
    and has_table_privilege(parked.oid, 'update')
    and has_table_privilege(parked.oid, 'delete') as parked_write,
    has_table_privilege(retention.oid, 'select')
    and has_table_privilege(retention.oid, 'update') as retention_write,
    has_table_privilege(scheduled.oid, 'select')
    and has_table_privilege(scheduled.oid, 'update')
    and has_table_privilege(scheduled.oid, 'delete') as scheduled_write,
    has_any_column_privilege(outbox.oid, 'insert') as outbox_insert,
    has_table_privilege(outbox.oid, 'delete') as outbox_delete,
    pg_has_role(outbox.relowner, 'usage') as outbox_owned,
    has_database_privilege(current_database(), 'create') as database_create,
    -- Columns that later migrations have added to the tables `relay` and `retention`.
    3 = (select count(*) from pg_attribute a
         where (a.attrelid = relay.oid and a.attname in ('adopts', 'event_source')
                 or a.attrelid = retention.oid and a.attname = 'deleted_until')
             and not a.attisdropped) as relay_is_current
from pg_roles role
left join pg_namespace namespace on namespace.nspname = $1
left join pg_namespace outbox_namespace on outbox_namespace.nspname = $2
left join pg_class outbox on outbox.relnamespace = outbox_namespace.oid and outbox.relname = $3
left join pg_class relay on relay.relnamespace = namespace.oid and relay.relname = 'relay'
left join pg_class relay_topic
    on relay_topic.relnamespace = namespace.oid and relay_topic.relname = 'relay_topic'
left join pg_class relay_secret
    on relay_secret.relnamespace = namespace.oid and relay_secret.relname = 'relay_secret'
left join pg_class parked on parked.relnamespace = namespace.oid and parked.relname = 'parked'
left join pg_class retention
    on retention.relnamespace = namespace.oid and retention.relname = 'retention'
left join pg_class scheduled
    on scheduled.relnamespace = namespace.oid and scheduled.relname = 'scheduled'
where role.rolname = current_user
