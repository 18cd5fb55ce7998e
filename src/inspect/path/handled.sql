-- Subscribers of this database that have handled an event. $1: its sources. $2: its id.
--
-- The primary key begins with the consumer, so the consumers are enumerated by a loose index scan.
with recursive consumer as (
    (select consumer from "{schema}".inbox order by consumer limit 1)
    union all
    select (
        select i.consumer from "{schema}".inbox i
        where i.consumer > consumer.consumer order by i.consumer limit 1
    )
    from consumer where consumer.consumer is not null
)
select handled.consumer, handled.handled_at, handled.xmin::text::bigint as xid
from consumer
cross join lateral (
    select i.consumer, i.handled_at, i.xmin from "{schema}".inbox i
    where i.consumer = consumer.consumer and i.source = any ($1) and i.event_id = $2
    union all
    select c.consumer, c.handled_at, c.xmin from "{schema}".inbox_collision c
    where c.consumer = consumer.consumer and c.source = any ($1) and c.event_id = $2
) handled
where consumer.consumer is not null
order by handled.handled_at
