-- Sagas: where each stands. Changed by the transaction that also has the inbox row and the events that it sends.

create table if not exists saga (
    -- The correlation id of everything that the saga sends.
    id uuid primary key,
    name text not null,
    -- The version of the code that wrote it last: older code leaves it alone.
    version int not null,
    -- Names the run within the saga's name.
    key text not null,
    status text not null,
    -- The step at which it stands, and what went wrong, for people; the whole is in `progress`.
    step text,
    error text,
    state json not null,
    progress jsonb not null,
    -- The conversation in which it was started.
    correlation_id text,
    -- When it has to be looked at though no reply comes: timeouts, retries, what a person has decided.
    due_at timestamptz,
    -- What a person has decided; done by whoever runs the saga.
    action text,
    started_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz,

    constraint saga_once unique (name, key),
    constraint saga_name_length check (octet_length(name) between 1 and 255),
    constraint saga_key_length check (octet_length(key) between 1 and 1024),
    constraint saga_version_positive check (version > 0),
    constraint saga_status_known check (status in ('waiting', 'running', 'compensating', 'completed', 'compensated', 'failed')),
    constraint saga_action_known check (action in ('retry', 'abort', 'end'))
);

create index if not exists saga_due on saga (name, due_at) where due_at is not null;
create index if not exists saga_ended on saga (name, ended_at) where ended_at is not null;

comment on table saga is 'One row per saga: its state, and how far it has come.';

-- Who holds, and who waits for, what sagas lock: of one resource the first in the order of `seq` holds it.
create table if not exists saga_lock (
    resource text not null,
    seq bigint generated always as identity (cache 1),
    saga uuid not null references saga (id) on delete cascade,

    primary key (resource, saga),
    constraint saga_lock_resource_length check (octet_length(resource) between 1 and 2048)
);

create index if not exists saga_lock_order on saga_lock (resource, seq);
create index if not exists saga_lock_saga on saga_lock (saga);

comment on table saga_lock is 'What sagas lock: of each resource the row with the least seq holds it, the others wait.';

-- For an application `app` that runs sagas:
--
--   grant select, insert, update, delete on tidings.saga, tidings.saga_lock to app;
