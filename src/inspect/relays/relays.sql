-- Every relay with its slot and its lag. $1 limits the number of waiting events that are counted.
--
-- Rows of the outbox are read in the order of its index on (xid, seq), starting with the first
-- transaction that is not completely published. So only waiting rows are read, regardless of the
-- size of the table.
with server as (
    select case
        when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn()
    end as lsn
),
relay as materialized (
    select
        r.*,
        coalesce(pg_snapshot_xmin((r.position ->> 'seen')::pg_snapshot), '0') as first_xid,
        coalesce(r.position, '{}') as published_position,
        -- Until its first start with this version, a relay uses the slot of the version before.
        coalesce(
            r.slot, case when r.name = 'tidings' then 'tidings' else 'tidings_' || r.name end
        ) as slot_name
    from "{schema}".relay r
)
select
    r.name,
    r.leader,
    r.epoch,
    extract(epoch from clock_timestamp() - r.heartbeat_at)::float8 as heartbeat_age_seconds,
    extract(epoch from clock_timestamp() - r.updated_at)::float8 as position_age_seconds,
    r.source,
    r.source_reason,
    r.delivery,
    r.position ->> 'log' as log,
    r.position ->> 'seen' as seen,
    r.published,
    r.kafka_cluster_id,
    r.slot_name,
    s.slot_name is not null as slot_exists,
    coalesce(s.active, false) as slot_active,
    s.wal_status,
    s.confirmed_flush_lsn::text as confirmed_flush_lsn,
    pg_wal_lsn_diff(server.lsn, s.restart_lsn)::bigint as retained_bytes,
    s.safe_wal_size,
    greatest(pg_wal_lsn_diff(server.lsn, s.confirmed_flush_lsn), 0)::bigint as lag_bytes,
    r.table_schema,
    r.table_name,
    -- Events of this schema's outbox; another table is counted by a separate query.
    waiting.events as lag_events,
    $1::bigint - 1 as counted_max,
    -- Sequence numbers have gaps only where transactions were rolled back.
    case
        when r.table_name is null
        then (select max(o.seq) from "{schema}".outbox o) - oldest.seq + 1
    end as lag_estimate,
    parked.events as parked_events,
    parked.aggregates as parked_aggregates,
    case when r.table_name is null then coalesce(
        greatest(extract(epoch from case
            when isfinite(oldest.occurred_at) then clock_timestamp() - oldest.occurred_at
        end), 0), 0)::float8 end as lag_seconds
from relay r
cross join server
left join pg_replication_slots s on s.slot_name = r.slot_name and s.database = current_database()
cross join lateral (
    select case when r.table_name is null then (
        select count(*) from (
            select from "{schema}".outbox o
            where o.xid >= r.first_xid
                and not "{schema}".is_published(r.published_position, o.xid, o.seq)
            order by o.xid, o.seq limit $1::bigint
        ) bounded
    ) end as events
) waiting
cross join lateral (
    select coalesce(sum(p.events), 0)::bigint as events,
        count(distinct (p.aggregatetype, p.aggregateid)) as aggregates
    from "{schema}".parked p where p.relay = r.name
) parked
left join lateral (
    select o.occurred_at, o.seq from "{schema}".outbox o
    where o.xid >= r.first_xid and not "{schema}".is_published(r.published_position, o.xid, o.seq)
    order by o.xid, o.seq limit 1
) oldest on r.table_name is null
order by r.name
