-- Counts of the sagas that have not ended successfully, by name. The condition is that of the index
-- `saga_open`.
select
    name,
    count(*) filter (where status <> 'failed') as open,
    count(*) filter (where status = 'failed') as failed,
    coalesce(extract(epoch from clock_timestamp() - min(due_at)), 0)::float8 as overdue_seconds,
    count(obstacle) as blocked,
    min(obstacle) as obstacle,
    (
        select extract(epoch from clock_timestamp() - max(seen_at))::float8
        from "{schema}".saga_code
        where saga_code.name = saga.name
    ) as unseen_seconds
from "{schema}".saga
where status in ('waiting', 'running', 'compensating', 'failed')
group by name
order by name
