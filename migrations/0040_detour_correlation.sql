-- The conversation of a parked event: a saga whose reply is parked does not time out before it.
alter table detour
    add column if not exists correlation_id text generated always as (
        left(encode(coalesce(
            header_values[array_position(header_names, 'ce_correlationid')],
            header_values[array_position(header_names, 'correlationid')]
        ), 'escape'), 255)
    ) stored;

create index if not exists detour_correlation on detour (consumer, correlation_id) where correlation_id is not null;
