-- Parked events of subscribers, and whether a running instance reads their topic.
-- An instance sends a heartbeat every ten seconds.
with live as (
    select consumer, topics from "{schema}".subscriber
    where stopped_at is null and seen_at > now() - interval '1 minute'
)
select
    consumer,
    topic,
    count(*) as events,
    count(distinct (partition, key)) as aggregates,
    exists (select from live where live.consumer = subscriber_parked.consumer) as runs,
    exists (
        select from live
        where live.consumer = subscriber_parked.consumer and subscriber_parked.topic = any (live.topics)
    ) as is_read
from "{schema}".subscriber_parked
group by consumer, topic
order by consumer, topic
