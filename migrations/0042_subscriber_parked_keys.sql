-- A record's key can have any length, but an index entry has at most 2,704 bytes. So the index
-- contains the first bytes of the key, and queries also compare the whole key.
drop index if exists subscriber_parked_heads;
create index if not exists subscriber_parked_heads
    on subscriber_parked (consumer, topic, partition, substring(key, 1, 512), seq);
