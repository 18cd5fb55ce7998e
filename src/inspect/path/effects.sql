-- Events that the transaction of a handler published. $1: the lower 32 bits of the transaction's
-- id, which the inbox row has as its xmin. $2: the id of the event that was handled. $3: limit.
--
-- The index on (xid, seq) finds them. The causation id excludes a transaction with the same lower
-- bits, and the other events of a batch.
with now as (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xid),
transaction as (
    select case
        when ((xid >> 32) << 32 | $1) > xid then ((xid >> 32) - 1) << 32 | $1
        else (xid >> 32) << 32 | $1
    end as xid
    from now
)
select o.id, o.type, o.aggregatetype, o.aggregateid, o.occurred_at
from transaction t
join "{schema}".outbox o on o.xid = t.xid::text::xid8
where t.xid > 0 and o.headers ->> 'causationid' = $2
order by o.seq
limit $3
