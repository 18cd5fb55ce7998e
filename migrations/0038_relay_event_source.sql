-- The `ce_source` of a relay whose configuration names none, chosen when it first leads. It stays when the database is renamed: subscribers
-- know an event by it.
alter table relay add column if not exists event_source text;
