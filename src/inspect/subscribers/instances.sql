-- Instances of subscribers that ran within the last week, the newest version first.
select
    consumer,
    instance,
    host,
    version,
    types,
    topics,
    escalation,
    started_at,
    greatest(extract(epoch from now() - seen_at), 0)::float8 as seen_seconds,
    stopped_at is not null as is_stopped,
    paused_since
from "{schema}".subscriber
order by consumer, is_stopped, version_since desc, started_at desc
