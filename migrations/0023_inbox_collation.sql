-- Ids are compared byte by byte: faster than by the rules of a language, and an index that says what was handled must not depend on a library of the system, whose order of
-- characters may change with an upgrade. Builds the inbox's indexes anew, under its lock.
alter table inbox
    alter column consumer type text collate "C",
    alter column source type text collate "C",
    alter column event_id type text collate "C";
