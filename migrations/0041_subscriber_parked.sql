-- Parked events of subscribers have the same word as those of relays. Rows and permissions stay.
do $$
begin
    if to_regclass('detour') is not null and to_regclass('subscriber_parked') is null then
        alter table detour rename to subscriber_parked;
        alter table subscriber_parked rename constraint detour_once to subscriber_parked_once;
        alter index if exists detour_heads rename to subscriber_parked_heads;
        alter index if exists detour_correlation rename to subscriber_parked_correlation;
    elsif to_regclass('detour') is not null then
        -- These migrations were applied by hand before: 0003 has created an empty table once more.
        if not exists (select from detour) then
            drop table detour;
        end if;
    end if;
end $$;

comment on table subscriber_parked is
    'Events of subscribers that wait: an event that failed too often, or one that waits for other code, and the later events of its aggregate.';

-- For an application `app` that handles events:
--
--   grant select, insert, update, delete on tidings.inbox, tidings.subscriber_parked to app;
