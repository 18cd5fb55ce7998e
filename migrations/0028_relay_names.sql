-- The names of the relay's slot and publication, which the relay keeps once it has chosen them. Null: no relay of this version has run.
alter table relay add column if not exists slot text;
alter table relay add column if not exists publication text;
-- The database that this one continues after an upgrade or a move, as the operator has confirmed. The relay takes it over at its next start.
alter table relay add column if not exists adopts jsonb;
