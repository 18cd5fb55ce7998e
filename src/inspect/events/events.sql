-- Events of the outbox, and the state of each in every relay that reads it.
--
-- $1: the id of an event, or null. $2, $3: an aggregate, or null. $4: only events before this
-- sequence number. $5: number of rows that are read. $6: number of events that are returned. $7: the
-- sizes of payloads are returned.
-- An id is found by its unique index. Otherwise rows are read from the newest one backwards, so the
-- cost is bounded by $5 whatever the size of the table: the outbox has no index on aggregates,
-- because each publish would pay for it.
with chosen as (
    select * from "{schema}".outbox o where $1::uuid is not null and o.id = $1
    union all
    select * from (
        select * from "{schema}".outbox o
        where $1::uuid is null and o.seq < $4 order by o.seq desc limit $5
    ) newest
    where $2::text is null or (newest.aggregatetype = $2 and newest.aggregateid = $3)
)
select
    o.seq,
    o.id,
    o.xid::text as xid,
    o.aggregatetype,
    o.aggregateid,
    o.type,
    o.version,
    o.topic,
    o.headers,
    o.occurred_at,
    case when current_setting('track_commit_timestamp') = 'on'
        then pg_xact_commit_timestamp(o.xid::xid) end as committed_at,
    case when $7 then coalesce(octet_length(o.payload::text), octet_length(o.payload_bytes))
        end::bigint as payload_bytes,
    (
        select coalesce(json_agg(json_build_object(
            'relay', r.name,
            'published', "{schema}".is_published(coalesce(r.position, '{}'), o.xid, o.seq),
            'parked', case when p.seq is not null then json_build_object(
                'reason', p.reason, 'action', p.action, 'tries', p.tries, 'since', p.parked_at) end
        ) order by r.name), '[]')
        from "{schema}".relay r
        left join lateral (
            select p.* from "{schema}".parked p
            where p.relay = r.name and p.aggregatetype = o.aggregatetype
                and p.aggregateid = o.aggregateid and p.seq <= o.seq
                and coalesce(p.to_seq, p.seq) >= o.seq
            order by p.seq desc limit 1
        ) p on true
        where r.table_name is null
    ) as relays
from chosen o
order by o.seq desc
limit $6
