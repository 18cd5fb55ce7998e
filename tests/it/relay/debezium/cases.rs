//! Tables and EventRouter settings for the comparison with Debezium.

use tidings::relay::{
    AdditionalColumn, DebeziumOutbox, OutboxField, Placement, RelayOptions, TopicRewrite,
};

/// One table with its settings for Debezium and for Tidings.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) columns: &'static str,
    /// Values of rows, in the order of the columns.
    pub(super) rows: &'static [&'static str],
    /// Properties of the connector in addition to the usual ones.
    pub(super) connector: &'static [(&'static str, &'static str)],
    pub(super) ours: fn(&mut RelayOptions, &mut DebeziumOutbox),
    /// The topic, without the prefix of the run.
    pub(super) topic: &'static str,
}

const JSON: [(&str, &str); 2] = [
    (
        "value.converter",
        "org.apache.kafka.connect.json.JsonConverter",
    ),
    ("value.converter.schemas.enable", "false"),
];

fn also(column: &str, placement: Placement, alias: &str) -> AdditionalColumn {
    AdditionalColumn {
        column: column.into(),
        placement,
        alias: alias.into(),
    }
}

/// All cases whose records are identical byte for byte.
pub(super) const LOSSLESS: &[Case] = &[
    Case {
        name: "text",
        columns: concat!(
            "id uuid primary key, aggregatetype text not null, aggregateid text not null, \
             type text not null",
            ", payload text"
        ),
        rows: &[
            "'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10', 'order', '7', 'OrderPlaced', \
             '{ \"total\" : 1.00, \"n\": null}'",
            "'0199E6F0-5C1A-7D3E-9B21-4F0C8A2D6E11', 'order', 'ключ-ä-🦀', 'OrderPlaced', \
             'no JSON, Zoë'",
            "'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e12', 'order', '7', 'OrderPlaced', null",
            "'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e13', 'order', '7', 'OrderPlaced', ''",
        ],
        connector: &[],
        ours: |_, _| {},
        topic: "outbox.event.order",
    },
    Case {
        name: "json",
        columns: concat!(
            "id uuid primary key, aggregatetype text not null, aggregateid text not null, \
             type text not null",
            ", payload json, tenant text, attempts int, urgent boolean, trace uuid"
        ),
        rows: &[
            "'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e20', 'order', '7', 'OrderPlaced', '{ \"b\": 1.00, \
             \"a\": [null, 12345678901234567890] }', 'acme \"x\"', -3, true, \
             '0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6eff'",
            "'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e21', 'order', '8', 'OrderPaid', '{}', null, null, \
             null, null",
        ],
        connector: &[(
            "transforms.outbox.table.fields.additional.placement",
            "type:header:eventType,tenant:header,attempts:header:tries,urgent:header,trace:header",
        )],
        ours: |_, outbox| {
            outbox.additional = vec![
                also("type", Placement::Header, "eventType"),
                also("tenant", Placement::Header, "tenant"),
                also("attempts", Placement::Header, "tries"),
                also("urgent", Placement::Header, "urgent"),
                also("trace", Placement::Header, "trace"),
            ];
        },
        topic: "outbox.event.order",
    },
    Case {
        name: "jsonb",
        columns: concat!(
            "id uuid primary key, aggregatetype text not null, aggregateid bigint not null, \
             type text not null",
            ", payload jsonb"
        ),
        rows: &[
            "'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e30', 'order', 9007199254740993, 'OrderPlaced', \
             '{ \"b\": 1.00, \"a\": null }'",
        ],
        connector: &[],
        ours: |_, _| {},
        topic: "outbox.event.order",
    },
    Case {
        name: "bytes",
        columns: concat!(
            "id uuid primary key, aggregatetype text not null, aggregateid uuid not null, \
             type text not null",
            ", payload bytea"
        ),
        rows: &["'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e40', 'order', \
             '0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e41', 'OrderPlaced', '\\x00ff01'"],
        connector: &[(
            "value.converter",
            "org.apache.kafka.connect.converters.ByteArrayConverter",
        )],
        ours: |_, _| {},
        topic: "outbox.event.order",
    },
    Case {
        name: "envelope",
        columns: concat!(
            "id uuid primary key, aggregatetype text not null, aggregateid text not null, \
             type text not null",
            ", payload json, tenant text, attempts int, urgent boolean"
        ),
        rows: &[
            "'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e50', 'order', '7', 'OrderPlaced', '{\"b\": 1.00, \
             \"t\": \"Zoë \\\"q\\\" /\\\\ \"}', 'tab\there', 5, false",
            "'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e51', 'order', '7', 'OrderPaid', '1', null, null, \
             null",
        ],
        connector: &[
            JSON[0],
            JSON[1],
            (
                "transforms.outbox.table.fields.additional.placement",
                "type:envelope:eventType,tenant:envelope,attempts:envelope,\
                 urgent:envelope,type:header",
            ),
        ],
        ours: |_, outbox| {
            outbox.additional = vec![
                also("type", Placement::Envelope, "eventType"),
                also("tenant", Placement::Envelope, "tenant"),
                also("attempts", Placement::Envelope, "attempts"),
                also("urgent", Placement::Envelope, "urgent"),
                also("type", Placement::Header, "type"),
            ];
        },
        topic: "outbox.event.order",
    },
    Case {
        name: "expanded",
        columns: concat!(
            "id uuid primary key, aggregatetype text not null, aggregateid text not null, \
             type text not null",
            ", payload jsonb"
        ),
        // This value is as compact as Java writes it. Another test covers values that Java
        // rewrites.
        rows: &["'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e60', 'order', '7', 'OrderPlaced', '5'"],
        connector: &[
            JSON[0],
            JSON[1],
            (
                "transforms.outbox.table.fields.additional.placement",
                "type:envelope:eventType",
            ),
        ],
        ours: |_, outbox| outbox.additional = vec![also("type", Placement::Envelope, "eventType")],
        topic: "outbox.event.order",
    },
    Case {
        name: "renamed",
        columns: "event_id uuid primary key, kind text not null, \"orderId\" text not null, \
            type text, body text",
        rows: &["'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e70', 'shop.order', '7', null, 'x'"],
        connector: &[
            ("transforms.outbox.table.field.event.id", "event_id"),
            ("transforms.outbox.table.field.event.key", "orderId"),
            ("transforms.outbox.table.field.event.payload", "body"),
            ("transforms.outbox.route.by.field", "kind"),
            ("transforms.outbox.route.topic.regex", "shop\\\\.(.*)"),
            (
                "transforms.outbox.route.topic.replacement",
                "${PREFIX}$1-events",
            ),
        ],
        ours: |options, outbox| {
            let prefix = options.topic.clone();
            options.topic_rewrite = Some(
                TopicRewrite::parse("shop\\.(.*)", &format!("{prefix}$1-events"))
                    .expect("a valid rewrite"),
            );
            outbox.columns = vec![
                (OutboxField::Id, "event_id".into()),
                (OutboxField::AggregateType, "kind".into()),
                (OutboxField::AggregateId, "orderId".into()),
                (OutboxField::Payload, "body".into()),
            ];
        },
        topic: "order-events",
    },
];

/// A case with an expanded payload, which Debezium rewrites.
pub(super) const LOSSY: Case = Case {
    name: "lossy",
    columns: concat!(
        "id uuid primary key, aggregatetype text not null, aggregateid text not null, \
         type text not null",
        ", payload json"
    ),
    rows: &[
        "'0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e80', 'order', '7', 'OrderPlaced', '{\"n\": 1.00, \
         \"gone\": null, \"large\": 1e2}'",
    ],
    connector: &[
        JSON[0],
        JSON[1],
        ("transforms.outbox.table.expand.json.payload", "true"),
    ],
    ours: |_, _| {},
    topic: "outbox.event.order",
};
