-- Attempts at an event before it was set aside: in place, in retry topics, before a replay. `attempts` counts those made from here.
alter table detour add column if not exists attempts_before int not null default 0;

-- A topic that was deleted and recreated uses its offsets again. Another record at the offset of one that waits is another event.
alter table detour
    drop constraint if exists detour_once,
    add constraint detour_once unique (consumer, topic, partition, record_offset, record_timestamp);
