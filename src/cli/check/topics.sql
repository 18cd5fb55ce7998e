-- The topics of the newest $1 rows of the outbox, and the topics that relays have published to.
-- $2 is the topic template.
select distinct topic from (
    select coalesce(
        newest.topic,
        replace(replace($2, '{aggregatetype}', newest.aggregatetype), '{type}', newest.type)
    ) as topic
    from (
        select topic, aggregatetype, type from "{schema}".outbox order by seq desc limit $1
    ) newest
    union all
    select topic from "{schema}".relay_topic
) known
order by topic
limit 200
