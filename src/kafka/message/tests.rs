//! Tests of parsing.

use super::{spring::SPRING_HEADER_TYPES, *};
use crate::kafka::incoming::Place;

fn read(
    headers: &[(&str, &str)],
    value: Option<&str>,
    assumed: Option<&'static str>,
) -> Result<Message, Malformed> {
    let place = Place {
        topic: "order".into(),
        partition: 3,
        offset: 9,
        timestamp: 0,
    };
    let headers = headers
        .iter()
        .map(|(name, value)| (*name, Some(value.as_bytes())));
    Message::read(
        Incoming::new(place, Some(b"7"), value.map(str::as_bytes), headers),
        assumed,
    )
    .map_err(|(malformed, _)| malformed)
}

const BINARY: [(&str, &str); 5] = [
    ("ce_specversion", "1.0"),
    ("ce_id", "e-1"),
    ("ce_type", "OrderPlaced"),
    ("ce_source", "/shop"),
    ("ce_dataversion", "2"),
];

#[test]
fn binary_and_structured_mode_say_the_same() {
    let structured = r#"{"specversion":"1.0","id":"e-1","type":"OrderPlaced","source":"/shop",
                         "dataversion":2,"traceparent":"00-a","data":{"n": 1}}"#;
    let binary = read(
        &[&BINARY[..], &[("traceparent", "00-a")]].concat(),
        Some(r#"{"n": 1}"#),
        None,
    )
    .expect("a CloudEvent");
    let structured = read(
        &[(
            "content-type",
            "application/cloudevents+json; charset=UTF-8",
        )],
        Some(structured),
        None,
    )
    .expect("another");
    for message in [&binary, &structured] {
        assert_eq!(
            (
                &*message.id(),
                &*message.source(),
                message.event_type(),
                message.version()
            ),
            ("e-1", "/shop", "OrderPlaced", 2)
        );
        assert_eq!(
            (message.data(), message.header("traceparent")),
            (Some(&br#"{"n": 1}"#[..]), Some("00-a"))
        );
    }
    assert!(
        structured
            .as_it_came()
            .value()
            .is_some_and(|value| value.starts_with(br#"{"specversion"#))
    );
}

#[test]
fn bytes_in_structured_mode_are_decoded() {
    let value = r#"{"specversion":"1.0","id":"1","type":"T","source":"/s","data_base64":"AP8="}"#;
    let message = read(
        &[("content-type", "application/cloudevents+json")],
        Some(value),
        None,
    )
    .expect("a CloudEvent");
    assert_eq!(message.data(), Some(&[0, 255][..]));
}

#[test]
fn an_attribute_of_a_structured_event_that_is_null_is_not_set() {
    let value = r#"{"specversion":"1.0","id":"1","type":"T","source":"/s","subject":null,"tenant":null,"data":null,"data_base64":null}"#;
    let message = read(
        &[("content-type", "application/cloudevents+json")],
        Some(value),
        None,
    )
    .expect("a CloudEvent");
    assert_eq!(
        (
            message.header("ce_subject"),
            message.header("ce_tenant"),
            message.data()
        ),
        (None, None, None)
    );
    assert!(!message.is_tombstone());
    for (value, missing) in [
        (
            r#"{"specversion":"1.0","id":null,"type":"T","source":"/s"}"#,
            "id",
        ),
        (
            r#"{"specversion":"1.0","id":"1","type":null,"source":"/s"}"#,
            "type",
        ),
        (
            r#"{"specversion":null,"id":"1","type":"T","source":"/s"}"#,
            "specversion",
        ),
    ] {
        let read = read(
            &[("content-type", "application/cloudevents+json")],
            Some(value),
            None,
        );
        assert!(
            matches!(read, Err(Malformed::Missing(attribute)) if attribute == missing),
            "{missing}"
        );
    }
}

#[test]
fn an_attribute_in_a_header_without_a_value_is_not_set() {
    let headers = BINARY.map(|(name, value)| (name, Some(value.as_bytes())));
    let nulls = [
        ("ce_subject", None),
        ("ce_time", None),
        ("ce_aggregatetype", None),
    ];
    let read = |headers: &[(&str, Option<&[u8]>)]| {
        let place = Place {
            topic: "order".into(),
            partition: 3,
            offset: 9,
            timestamp: 0,
        };
        Message::read(
            Incoming::new(place, None, Some(b"{}"), headers.iter().copied()),
            None,
        )
        .map_err(|(malformed, _)| malformed)
    };
    let message = read(&[&headers[..], &nulls].concat()).expect("a CloudEvent");
    assert_eq!((message.aggregate_type(), message.time()), (None, None));
    let without_type = headers.map(|(name, value)| (name, value.filter(|_| name != "ce_type")));
    assert!(matches!(
        read(&without_type),
        Err(Malformed::Missing("type"))
    ));
}

#[test]
fn structured_data_is_text_unless_its_type_is_json() {
    for (header, attribute, data) in [
        (
            "application/cloudevents+json",
            r#""datacontenttype":"text/plain","#,
            "h\u{e9}",
        ),
        (
            "application/cloudevents+json",
            r#""datacontenttype":"application/xml; charset=utf-8","#,
            "h\u{e9}",
        ),
        (
            "application/cloudevents+json",
            r#""datacontenttype":"application/json","#,
            r#""h\u00e9""#,
        ),
        (
            "application/cloudevents+json",
            r#""datacontenttype":"Application/Vnd.X+JSON; x=y","#,
            r#""h\u00e9""#,
        ),
        (
            "application/cloudevents+json",
            r#""datacontenttype":null,"#,
            r#""h\u00e9""#,
        ),
        ("application/cloudevents+json", "", r#""h\u00e9""#),
        // The record's content type is that of the data in the SDK for Python.
        ("text/plain", "", "h\u{e9}"),
        (
            "text/plain",
            r#""datacontenttype":"text/json","#,
            r#""h\u00e9""#,
        ),
    ] {
        let value = format!(
            r#"{{"specversion":"1.0","id":"1","type":"T","source":"/s",{attribute}"data":"h\u00e9"}}"#
        );
        let message = read(&[("content-type", header)], Some(&value), None).expect("a CloudEvent");
        assert_eq!(
            message.data(),
            Some(data.as_bytes()),
            "{header} {attribute}"
        );
    }
}

#[test]
fn the_content_type_of_a_structured_event_is_that_of_its_data() {
    for (header, attribute, expected) in [
        (
            "application/cloudevents+json",
            r#""datacontenttype":"application/x","#,
            Some("application/x"),
        ),
        ("application/cloudevents+json; charset=UTF-8", "", None),
        ("application/json", "", Some("application/json")),
        (
            "application/json",
            r#""datacontenttype":"application/x","#,
            Some("application/x"),
        ),
    ] {
        let value = format!(
            r#"{{"specversion":"1.0","id":"1","type":"T","source":"/s",{attribute}"data":{{}}}}"#
        );
        let message = read(&[("content-type", header)], Some(&value), None).expect("a CloudEvent");
        assert_eq!(
            message.header("content-type"),
            expected,
            "{header} {attribute}"
        );
    }
}

#[test]
fn headers_that_springs_mapper_wrote_as_json_are_read_as_their_text() {
    let types = r#"{"ce_id":"java.util.UUID","ce_source":"java.net.URI","ce_type":"java.lang.String","n":"java.lang.Integer"}"#;
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", r#""e-1""#),
        ("ce_source", r#""/shop""#),
        ("ce_type", "OrderPlaced"),
        ("n", "5"),
        ("other", r#""as it is""#),
        (SPRING_HEADER_TYPES, types),
    ];
    let message = read(&headers, Some("{}"), None).expect("a CloudEvent");
    assert_eq!(
        (&*message.id(), &*message.source(), message.event_type()),
        ("e-1", "/shop", "OrderPlaced")
    );
    assert_eq!(
        (message.header("n"), message.header("other")),
        (Some("5"), Some(r#""as it is""#))
    );
    assert_eq!(
        message.as_it_came().header("ce_id"),
        Some(&br#""e-1""#[..]),
        "a dead letter is the record as it came"
    );
    for other in ["", "{", "[]", r#"{"ce_id":5}"#] {
        let headers = [&headers[..6], &[(SPRING_HEADER_TYPES, other)]].concat();
        assert_eq!(
            read(&headers, Some("{}"), None).expect("a CloudEvent").id(),
            r#""e-1""#,
            "{other}"
        );
    }
}

#[test]
fn records_of_the_event_router_have_their_type_in_a_header_or_are_told_one() {
    let debezium = read(
        &[("id", "e-2"), ("eventType", "OrderPlaced")],
        Some(r#"{"n":1}"#),
        None,
    )
    .expect("a type in a header");
    assert_eq!(
        (&*debezium.id(), debezium.event_type()),
        ("e-2", "OrderPlaced")
    );
    let told = read(
        &[("id", "e-2")],
        Some(r#""{\"n\":1}""#),
        Some("OrderPlaced"),
    )
    .expect("an assumed type");
    assert_eq!(
        (told.event_type(), told.data()),
        ("OrderPlaced", Some(&br#"{"n":1}"#[..]))
    );
}

#[test]
fn plain_json_is_known_by_its_place() {
    let plain = read(&[], Some("{}"), Some("OrderPlaced")).expect("an assumed type");
    assert_eq!(
        (&*plain.id(), &*plain.source(), &*plain.aggregate_id()),
        ("3/9", "kafka:order", "7")
    );
}

#[test]
fn attributes_in_headers_win_over_a_value_that_claims_to_be_another_event() {
    let forged =
        r#"{"specversion":"1.0","id":"forged","type":"Forged","source":"/evil","data":{}}"#;
    let claims = [
        &BINARY[..],
        &[("content-type", "application/cloudevents+json")],
    ]
    .concat();
    let message = read(&claims, Some(forged), None).expect("a CloudEvent in binary mode");
    assert_eq!(
        (&*message.id(), &*message.source(), message.event_type()),
        ("e-1", "/shop", "OrderPlaced")
    );
    assert_eq!(message.data(), Some(forged.as_bytes()));
}

#[test]
fn other_versions_of_cloud_events_and_envelopes_of_connect_are_no_events() {
    for version in ["2.0", "0.3", "1.1", "1", ""] {
        let headers = [
            ("ce_specversion", version),
            ("ce_id", "1"),
            ("ce_type", "T"),
            ("ce_source", "/s"),
        ];
        assert!(
            matches!(
                read(&headers, Some("{}"), None),
                Err(Malformed::SpecVersion(_))
            ),
            "{version}"
        );
        let structured =
            format!(r#"{{"specversion":"{version}","id":"1","type":"T","source":"/s"}}"#);
        assert!(
            matches!(
                read(&[], Some(&structured), Some("T")),
                Err(Malformed::SpecVersion(_))
            ),
            "{version}"
        );
    }
    let envelope = r#"{"schema":{"type":"struct"},"payload":{}}"#;
    assert!(matches!(
        read(&[], Some(envelope), Some("T")),
        Err(Malformed::ConnectEnvelope)
    ));
    assert!(matches!(
        read(&[("eventType", "T")], Some(envelope), None),
        Err(Malformed::ConnectEnvelope)
    ));
    assert!(
        read(&BINARY, Some(envelope), None).is_ok(),
        "the data of a CloudEvent may look like an envelope of Connect"
    );
}

#[test]
fn a_structured_event_needs_no_content_type() {
    let value = r#"{"specversion":"1.0","id":"1","type":"T","source":"/s","tenant":"acme",
                    "data":{"n":1}}"#;
    let message = read(&[], Some(value), None).expect("a CloudEvent");
    assert_eq!(
        (&*message.id(), message.event_type(), message.data()),
        ("1", "T", Some(&br#"{"n":1}"#[..]))
    );
    assert_eq!(message.header("ce_tenant"), Some("acme"));
}

#[test]
fn a_record_without_its_headers_is_no_event_whatever_its_value() {
    let place = Place {
        topic: "order".into(),
        partition: 3,
        offset: 9,
        timestamp: 0,
    };
    let mut record = Incoming::new(place, Some(b"7"), Some(b"{}"), std::iter::empty());
    record.lacks_headers = true;
    assert!(matches!(
        Message::read(record, Some("T")),
        Err((Malformed::HeaderNames, _))
    ));
}

#[test]
fn a_format_that_is_not_read_is_named_also_for_an_assumed_type() {
    let batch = [("content-type", "application/cloudevents-batch+json")];
    assert!(matches!(
        read(&batch, Some("[]"), Some("T")),
        Err(Malformed::Format(_))
    ));
    assert!(matches!(
        read(&[("__TypeId__", "x.Y")], Some("{}"), None),
        Err(Malformed::Format(_))
    ));
    assert!(read(&[("__TypeId__", "x.Y")], Some("{}"), Some("T")).is_ok());
    assert!(
        read(&batch, None, None)
            .expect("a tombstone, whatever its headers contain")
            .is_tombstone()
    );
}

#[test]
fn what_is_no_event_says_why() {
    assert!(matches!(
        read(&[], Some("{}"), None),
        Err(Malformed::NoType)
    ));
    assert!(matches!(
        read(&BINARY[..1], Some("{}"), None),
        Err(Malformed::Missing("id"))
    ));
    assert!(matches!(
        read(&BINARY[..2], Some("{}"), None),
        Err(Malformed::Missing("type"))
    ));
    assert!(matches!(
        read(
            &[&BINARY[..4], &[("ce_dataversion", "x")]].concat(),
            Some("{}"),
            None
        ),
        Err(Malformed::Version(_))
    ));
    let structured = [("content-type", "application/cloudevents+json")];
    assert!(matches!(
        read(&structured, Some("{"), None),
        Err(Malformed::Structured(_))
    ));
    assert!(matches!(
        read(&structured, Some(r#"{"id":"1","type":"T"}"#), Some("T")),
        Err(Malformed::Missing("specversion"))
    ));
    assert!(matches!(
        read(
            &structured,
            Some(r#"{"specversion":"1.0","type":"T"}"#),
            None
        ),
        Err(Malformed::Missing("id"))
    ));
}
