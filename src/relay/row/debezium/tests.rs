//! Tests of decoding: values in, events out.

use proptest::prelude::*;

use super::*;
use crate::relay::AdditionalColumn;

const COLUMNS: [(&str, u32); 8] = [
    ("id", 2950),
    ("aggregatetype", 25),
    ("aggregateid", 20),
    ("type", 1043),
    ("payload", 114),
    ("n", 23),
    ("seq", 25),
    ("urgent", 16),
];

fn columns() -> Vec<Column> {
    COLUMNS
        .iter()
        .map(|(name, type_oid)| Column {
            name: (*name).into(),
            type_oid: *type_oid,
        })
        .collect()
}

fn outbox(additional: &[(&str, Placement, &str)]) -> DebeziumOutbox {
    let mut outbox = DebeziumOutbox::new("public", "outbox");
    let one = |(column, placement, alias): &(&str, Placement, &str)| AdditionalColumn {
        column: (*column).into(),
        placement: *placement,
        alias: (*alias).into(),
    };
    outbox.additional = additional.iter().map(one).collect();
    outbox
}

/// Returns a streamed row's bytes: a count, then each value with its tag and length.
fn tuple(values: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut bytes = vec![b'I', 0, 0, 0, 1, b'N'];
    bytes.extend((values.len() as u16).to_be_bytes());
    for value in values {
        match value {
            None => bytes.push(b'n'),
            Some(value) => {
                bytes.push(b'b');
                bytes.extend((value.len() as u32).to_be_bytes());
                bytes.extend(value);
            }
        }
    }
    bytes
}

fn row(key: i64, payload: Option<&str>, n: Option<i32>) -> Vec<u8> {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let payload = payload.and_then(text);
    let n = n.map(|n| n.to_be_bytes().to_vec());
    tuple(&[
        Some(vec![7; 16]),
        text("order"),
        Some(key.to_be_bytes().to_vec()),
        text("Placed"),
        payload,
        n,
        text("x"),
        Some(vec![1]),
    ])
}

fn read<T>(layout: &Layout, bytes: &[u8], check: impl FnOnce(Result<Row<'_>, RowError>) -> T) -> T {
    use crate::postgres::replication::{Message, decode};
    let Ok(Message::Insert { row, .. }) = decode(bytes) else {
        panic!("an insert")
    };
    check(layout.read(&row, 5, &mut RowBuffer::default()))
}

proptest! {
    #[test]
    fn what_an_envelope_holds_is_what_the_columns_held(
        key: i64,
        text in ".{0,20}",
        n in any::<Option<i32>>(),
        expand: bool,
    ) {
        let mut outbox = outbox(&[
            ("type", Placement::Header, "t"),
            ("n", Placement::Envelope, "number"),
            ("type", Placement::Envelope, "kind"),
            ("urgent", Placement::Envelope, "urgent"),
        ]);
        outbox.expand_json = expand;
        let layout = Layout::of(&outbox, &columns()).expect("a layout");
        let payload = serde_json::json!({ "text": text }).to_string();
        read(&layout, &row(key, Some(&payload), n), |row| {
            let event = row.expect("an event").event;
            assert_eq!(
                (event.aggregate_id, event.headers, event.occurred_at),
                (key.to_string().as_str(), r#"{"t":"Placed"}"#, 5)
            );
            let value: serde_json::Value = serde_json::from_slice(event.value.bytes().expect(
                "a value",
            ))
            .expect("JSON");
            let inner = if expand {
                serde_json::from_str(&payload).expect("JSON")
            } else {
                serde_json::Value::from(payload.as_str())
            };
            assert_eq!(
                value,
                serde_json::json!({
                    "payload": inner, "number": n, "kind": "Placed", "urgent": true,
                })
            );
        });
    }

    #[test]
    fn no_row_panics(
        bytes in proptest::collection::vec(
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            0..10,
        ),
    ) {
        let layout = Layout::of(
            &outbox(&[
                ("n", Placement::Header, "n"),
                ("payload", Placement::Envelope, "p"),
            ]),
            &columns(),
        )
        .expect("a layout");
        read(&layout, &tuple(&bytes), |row| row.is_ok());
    }
}

#[test]
fn a_payload_is_the_value_as_it_is_and_null_is_a_tombstone() {
    let layout = Layout::of(&outbox(&[]), &columns()).expect("a layout");
    read(&layout, &row(1, Some("{ \"n\": 1.00 }"), None), |row| {
        assert_eq!(
            row.expect("an event").event.value,
            Value::Json(b"{ \"n\": 1.00 }")
        )
    });
    read(&layout, &row(1, None, None), |row| {
        assert_eq!(row.expect("an event").event.value, Value::Tombstone)
    });
}

#[test]
fn a_column_that_is_missing_or_cannot_be_sent_is_named_with_the_remedy() {
    // A `seq` that is not a bigint is an unrelated column, and the table has no order.
    assert!(
        !Layout::of(&outbox(&[]), &columns())
            .expect("a layout")
            .is_ordered()
    );
    let error = |outbox: &DebeziumOutbox, columns: &[Column]| {
        Layout::of(outbox, columns)
            .expect_err("refused")
            .to_string()
    };
    assert!(
        error(&outbox(&[("tenant", Placement::Header, "t")]), &columns())
            .contains("no column `tenant`")
    );
    let mut other = columns();
    other[0].type_oid = 20;
    assert!(
        error(&outbox(&[]), &other).contains("`id`")
            && error(&outbox(&[]), &other).contains("uuid")
    );
    other[0].type_oid = 2950;
    other[5].type_oid = 1700;
    assert!(error(&outbox(&[("n", Placement::Header, "n")]), &other).contains("generated"));
    let mut null = row(1, Some("1"), None);
    let layout = Layout::of(&outbox(&[]), &columns()).expect("a layout");
    null.truncate(8 + 21);
    null[7] = 1;
    read(&layout, &null, |row| {
        let row = row.expect("an identified event");
        assert_eq!(
            row.fault.map(|fault| fault.to_string()).as_deref(),
            Some("column `aggregatetype` is null where a value is needed")
        );
    });
    read(&layout, &tuple(&[None]), |row| {
        assert!(
            row.expect_err("no id")
                .to_string()
                .contains("of event ? of table public.outbox")
        )
    });
}
