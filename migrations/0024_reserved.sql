-- Rows are data: names that belong to Kafka, to relays and to the envelope are refused, and so is a time that is none.
--
-- `not valid`: rows that are there stay as they are. A relay parks those that it cannot send.
--
-- Topics `__*` belong to Kafka, topics `tidings.position.*` hold what relays have published. An aggregate type
-- becomes a topic by the default template. The headers `ce_*`, `kafka_dlt-*` and `tidings_*` are written by
-- Tidings alone, in whatever letter case they are given; a payload that is a whole CloudEvent would replace the one
-- that the relay makes of the row.

alter table outbox
    drop constraint if exists outbox_topic_reserved,
    add constraint outbox_topic_reserved check (topic !~ '^(__|tidings[.]position[.])') not valid,
    drop constraint if exists outbox_aggregatetype_reserved,
    add constraint outbox_aggregatetype_reserved check (aggregatetype !~ '^(__|tidings[.]position[.])') not valid,
    drop constraint if exists outbox_headers_reserved,
    -- One expression for most names: it costs about two microseconds for each header.
    add constraint outbox_headers_reserved check (
        not headers @? '$.keyvalue() ? (
            @.key like_regex "^(ce_|kafka_dlt-|tidings_|content-type$)" flag "i"
            && (!(@.key like_regex "^content-type$" flag "i") || @.value like_regex "^\\s*application/cloudevents" flag "i"))'
    ) not valid,
    drop constraint if exists outbox_occurred_at_finite,
    add constraint outbox_occurred_at_finite check (isfinite(occurred_at)) not valid;

alter table scheduled
    drop constraint if exists outbox_topic_reserved,
    add constraint outbox_topic_reserved check (topic !~ '^(__|tidings[.]position[.])') not valid,
    drop constraint if exists outbox_aggregatetype_reserved,
    add constraint outbox_aggregatetype_reserved check (aggregatetype !~ '^(__|tidings[.]position[.])') not valid,
    drop constraint if exists outbox_headers_reserved,
    -- One expression for most names: it costs about two microseconds for each header.
    add constraint outbox_headers_reserved check (
        not headers @? '$.keyvalue() ? (
            @.key like_regex "^(ce_|kafka_dlt-|tidings_|content-type$)" flag "i"
            && (!(@.key like_regex "^content-type$" flag "i") || @.value like_regex "^\\s*application/cloudevents" flag "i"))'
    ) not valid,
    drop constraint if exists outbox_occurred_at_finite,
    add constraint outbox_occurred_at_finite check (isfinite(occurred_at)) not valid;
