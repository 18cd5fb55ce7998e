-- Finds the sagas that have not ended well, among those that have and are kept for a while.
create index if not exists saga_open on saga (name) where status in ('waiting', 'running', 'compensating', 'failed');
