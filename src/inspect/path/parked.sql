-- Parked rows of subscribers for an event. $1: its id. $2: number of rows that are examined,
-- because the table has no index on ids.
select p.consumer, p.topic, p.partition, p.record_offset, p.attempts + p.attempts_before as attempts,
    p.next_attempt_at, p.error, p.since
from (select * from "{schema}".subscriber_parked order by seq limit $2) p
where array_position(p.header_names, 'ce_id') is not null
    and p.header_values[array_position(p.header_names, 'ce_id')] = convert_to($1, 'UTF8')
order by p.consumer, p.seq
