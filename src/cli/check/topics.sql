-- The kinds of the newest $1 rows of the outbox that name no topic, and topics: those that such rows
-- name, and those that relays have published to.
select distinct topic, aggregatetype, type from (
    select topic, case when topic is null then aggregatetype end as aggregatetype,
        case when topic is null then type end as type
    from (
        select topic, aggregatetype, type from "{schema}".outbox order by seq desc limit $1
    ) newest
    union all
    select topic, null, null from "{schema}".relay_topic
) known
order by topic, aggregatetype, type
limit 1000
