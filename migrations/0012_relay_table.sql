-- Which table a relay reads, if it is not this schema's outbox: what waits is counted there.
alter table relay add column if not exists table_schema text;
alter table relay add column if not exists table_name text;
