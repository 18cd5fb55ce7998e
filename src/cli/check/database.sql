-- What a relay needs to know of the server and of its own rights. $1 is the schema, $2 the slot,
-- $3 and $4 the table that events are read from, $5 the publication. One row.
select
    current_setting('server_version_num')::int as version_number,
    current_setting('server_version') as version,
    pg_is_in_recovery() as in_recovery,
    current_setting('wal_level') as wal_level,
    current_setting('max_replication_slots')::int as slots_max,
    (select count(*) from pg_replication_slots)::int as slots_used,
    current_setting('max_wal_senders')::int as senders_max,
    (select count(*) from pg_stat_replication)::int as senders_used,
    (select setting::bigint from pg_settings where name = 'max_slot_wal_keep_size') as slot_wal_keep_megabytes,
    current_user::text as role,
    current_database()::text as database,
    role.rolsuper as superuser,
    role.rolreplication
        or exists (select from pg_roles cloud where cloud.rolname = 'rds_replication' and pg_has_role(cloud.oid, 'member')) as replication,
    (select slot_type || ' ' || coalesce(plugin, '') from pg_replication_slots where slot_name = $2) as slot_kind,
    (select database::text from pg_replication_slots where slot_name = $2) as slot_database,
    (select wal_status from pg_replication_slots where slot_name = $2) as slot_wal_status,
    outbox.oid is not null as outbox_exists,
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
    exists (select from pg_trigger t where t.tgrelid = outbox.oid and t.tgname = 'outbox_own_transaction' and t.tgenabled = 'A') as own_transactions,
    (extract(epoch from clock_timestamp()) * 1000)::bigint as clock,
    has_table_privilege(parked.oid, 'select')
    and has_table_privilege(parked.oid, 'insert')
    and has_table_privilege(parked.oid, 'update')
    and has_table_privilege(parked.oid, 'delete') as parked_write,
    has_table_privilege(retention.oid, 'select') and has_table_privilege(retention.oid, 'update') as retention_write,
    has_table_privilege(scheduled.oid, 'select')
    and has_table_privilege(scheduled.oid, 'update')
    and has_table_privilege(scheduled.oid, 'delete') as scheduled_write,
    has_any_column_privilege(outbox.oid, 'insert') as outbox_insert,
    has_table_privilege(outbox.oid, 'delete') as outbox_delete,
    pg_has_role(outbox.relowner, 'usage') as outbox_owned,
    has_database_privilege(current_database(), 'create') as database_create,
    -- The relay's own publication bears the slot's name.
    (select p.pubinsert from pg_publication p where p.pubname = $5) as publication_inserts,
    exists (select from pg_publication_tables t where t.pubname = $5 and t.schemaname = $3 and t.tablename = $4) as publication_has_outbox
from pg_roles role
left join pg_namespace namespace on namespace.nspname = $1
left join pg_namespace outbox_namespace on outbox_namespace.nspname = $3
left join pg_class outbox on outbox.relnamespace = outbox_namespace.oid and outbox.relname = $4
left join pg_class relay on relay.relnamespace = namespace.oid and relay.relname = 'relay'
left join pg_class relay_topic on relay_topic.relnamespace = namespace.oid and relay_topic.relname = 'relay_topic'
left join pg_class relay_secret on relay_secret.relnamespace = namespace.oid and relay_secret.relname = 'relay_secret'
left join pg_class parked on parked.relnamespace = namespace.oid and parked.relname = 'parked'
left join pg_class retention on retention.relnamespace = namespace.oid and retention.relname = 'retention'
left join pg_class scheduled on scheduled.relnamespace = namespace.oid and scheduled.relname = 'scheduled'
where role.rolname = current_user
