//! Tests of the code that the derive macro generates.

use serde::{Deserialize, Serialize};
use tidings::event::Envelope;
use tidings::{DomainEvent, event::Json};
use uuid::Uuid;

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct OrderPlaced {
    order_id: Uuid,
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "cart", id = "0", type = "cart.emptied")]
#[event(version = 3)]
struct Emptied(u64);

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "r", id = "type")]
#[allow(non_camel_case_types)]
struct r#struct {
    r#type: String,
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "seat", id = self.key())]
enum Seat {
    Taken { flight: String, seat: u8 },
    Freed(String, u8),
}

impl Seat {
    fn key(&self) -> String {
        match self {
            Self::Taken { flight, seat } | Self::Freed(flight, seat) => format!("{flight}/{seat}"),
        }
    }
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "account", id = "account")]
enum Account {
    Opened {
        account: String,
    },
    #[event(type = "AccountMerged", id = "into")]
    Merged {
        from: String,
        into: String,
    },
    #[event(id = "1")]
    Closed(bool, i32),
}

/// Custom id type of an application.
#[derive(Serialize, Deserialize)]
struct Key(u8);

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "key-{}", self.0)
    }
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "thing", id = "key")]
struct Changed<T, const N: usize>
where
    T: Clone,
{
    key: Key,
    data: Vec<T>,
}

/// Types whose names could conflict with the generated code.
mod shadowed {
    #![allow(dead_code)]
    struct String;
    struct Option;
    mod std {}
    #[derive(serde::Serialize, serde::Deserialize, tidings::DomainEvent)]
    #[event(aggregate = "a", id = "id")]
    pub(super) struct Event {
        pub(super) id: u8,
    }
}

#[test]
fn a_struct_is_one_event_named_as_itself() {
    let event = OrderPlaced {
        order_id: Uuid::from_u128(1),
    };
    assert_eq!(
        (
            OrderPlaced::AGGREGATE,
            OrderPlaced::TYPES,
            OrderPlaced::VERSION
        ),
        ("order", &["OrderPlaced"][..], 1)
    );
    assert_eq!(
        (event.event_type(), &*event.aggregate_id()),
        ("OrderPlaced", "00000000-0000-0000-0000-000000000001")
    );
}

#[test]
fn names_versions_and_positions_are_taken_from_the_attribute() {
    let event = Emptied(7);
    assert_eq!(
        (Emptied::TYPES, Emptied::VERSION),
        (&["cart.emptied"][..], 3)
    );
    assert_eq!(
        (event.event_type(), &*event.aggregate_id()),
        ("cart.emptied", "7")
    );
}

#[test]
fn raw_identifiers_lose_their_prefix() {
    let event = r#struct { r#type: "x".into() };
    assert_eq!(
        (event.event_type(), &*event.aggregate_id()),
        ("struct", "x")
    );
}

#[test]
fn an_expression_sees_every_variant() {
    let (taken, freed) = (
        Seat::Taken {
            flight: "LH1".into(),
            seat: 3,
        },
        Seat::Freed("LH2".into(), 4),
    );
    assert_eq!(Seat::TYPES, ["Taken", "Freed"]);
    assert_eq!(
        (taken.event_type(), &*taken.aggregate_id()),
        ("Taken", "LH1/3")
    );
    assert_eq!(
        (freed.event_type(), &*freed.aggregate_id()),
        ("Freed", "LH2/4")
    );
}

#[test]
fn each_variant_names_its_type_and_its_field() {
    assert_eq!(Account::TYPES, ["Opened", "AccountMerged", "Closed"]);
    let opened = Account::Opened {
        account: "a".into(),
    };
    let merged = Account::Merged {
        from: "a".into(),
        into: "b".into(),
    };
    assert_eq!(
        (opened.event_type(), &*opened.aggregate_id()),
        ("Opened", "a")
    );
    assert_eq!(
        (merged.event_type(), &*merged.aggregate_id()),
        ("AccountMerged", "b")
    );
    assert_eq!(Account::Closed(true, -5).aggregate_id(), "-5");
}

#[test]
fn a_generic_event_is_one_wherever_its_codec_can_encode_it() {
    let event: Changed<u8, 4> = Changed {
        key: Key(9),
        data: vec![1, 2],
    };
    let envelope = Envelope::of(&event).expect("it has a JSON form");
    assert_eq!(
        (envelope.aggregate_id.as_str(), envelope.payload.as_json()),
        ("key-9", Some(r#"{"key":9,"data":[1,2]}"#))
    );
    assert_eq!(
        envelope
            .decode::<Changed<u8, 4>>()
            .expect("it reads back")
            .data,
        [1, 2]
    );
}

#[test]
fn names_in_scope_do_not_matter() {
    assert_eq!(shadowed::Event { id: 5 }.aggregate_id(), "5");
}

#[test]
fn an_event_is_json_unless_it_says_otherwise() {
    fn codec_of<E: DomainEvent<Codec = Json>>(_: &E) {}
    codec_of(&Emptied(1));
}
