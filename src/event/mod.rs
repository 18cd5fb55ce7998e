//! Events: their Rust types, envelopes, payloads and headers.
//!
//! A [`DomainEvent`] is a Rust type of the application. An [`Envelope`] is one event of such a
//! type, ready for an outbox row or a Kafka record. It holds an id, the aggregate, a type and a
//! version, a [`Payload`] and [`Headers`]. A [`Codec`] converts between the two; [`Json`] is the
//! default.
//!
//! Publishers, the relay and subscribers share this module. It performs no I/O.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use tidings::DomainEvent;
//!
//! #[derive(Serialize, Deserialize, DomainEvent)]
//! #[event(aggregate = "order", id = "order_id")]
//! struct OrderPlaced {
//!     order_id: u64,
//!     total_cents: i64,
//! }
//!
//! let event = OrderPlaced { order_id: 7, total_cents: 1999 };
//! assert_eq!(OrderPlaced::AGGREGATE, "order");
//! assert_eq!(event.event_type(), "OrderPlaced");
//! assert_eq!(event.aggregate_id(), "7");
//! ```

mod codec;
mod envelope;
pub mod headers;
mod id;
mod invalid;
mod panicked;
mod payload;
mod reserved;
mod version;

use std::borrow::Cow;

pub use codec::{Codec, CodecError, Json, Raw};
pub use envelope::{Envelope, EnvelopeError};
pub use headers::Headers;
pub use id::{AggregateId, EventId};
#[cfg(feature = "relay")]
pub(crate) use invalid::is_topic_character;
pub use invalid::{InvalidEvent, check_topic_name};
pub(crate) use panicked::panic_text;
pub use payload::Payload;
#[cfg(any(feature = "relay", feature = "subscriber"))]
pub(crate) use reserved::is_reserved_topic;
#[cfg(feature = "kafka")]
pub(crate) use reserved::refuse_reserved_header;
pub use tidings_derive::DomainEvent;
pub use version::{VersionError, decode_version, lift};

/// An event of an aggregate, as a Rust type. Publishers pass it to [`publish`](crate::outbox), and
/// handlers receive it.
///
/// Implement it with the derive macro. The macro accepts these keys in `#[event(…)]`:
///
/// - `aggregate = "order"` on a struct or enum, required: the type of the aggregate. It becomes
///   part of a topic name, so it consists of letters, digits, `.`, `_` and `-`.
/// - `id = "order_id"` on a struct, enum or variant, required: the field that holds the aggregate
///   id (`"0"` in a tuple struct). Its type implements `Display`.
/// - `id = self.key()` on a struct or enum: the aggregate id as an expression over `self`.
/// - `type = "order.placed"` on a struct or variant: the event type. Defaults to the name of the
///   struct or variant.
/// - `version = 2` on a struct or enum: the version of the payload's schema. Defaults to 1.
/// - `upcast(from = 1, with = path)` on a struct or enum: upcasts a JSON payload of version 1 to
///   version 2 with a function from the old type to the next. Repeat it for each old version,
///   starting with the oldest that is still read. A gap is a compile error.
/// - `codec = Protobuf` on a struct or enum: the [`Codec`] of the payload. Defaults to [`Json`].
///
/// The event type is a contract with subscribers: set `type` before you rename a struct.
///
/// # Examples
///
/// An enum holds several event types, one per variant. Serde attributes determine the JSON of a
/// variant (`#[serde(tag = "kind")]` and so on).
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tidings::DomainEvent;
///
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = "order", id = "order_id", version = 2)]
/// enum OrderEvent {
///     #[event(type = "OrderPlaced")]
///     Placed { order_id: String, total_cents: i64 },
///     #[event(type = "OrderCancelled")]
///     Cancelled { order_id: String },
/// }
///
/// let event = OrderEvent::Cancelled { order_id: "o-1".into() };
/// assert_eq!(OrderEvent::TYPES, ["OrderPlaced", "OrderCancelled"]);
/// assert_eq!(OrderEvent::VERSION, 2);
/// assert_eq!(event.event_type(), "OrderCancelled");
/// assert_eq!(event.aggregate_id(), "o-1");
/// ```
///
/// An event whose schema changed. When a subscriber reads a payload of version 1, `add_currency`
/// upcasts it:
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// use serde_json::{Value, json};
/// use tidings::DomainEvent;
/// use tidings::event::decode_version;
///
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(
///     aggregate = "order",
///     id = "order_id",
///     version = 2,
///     upcast(from = 1, with = add_currency)
/// )]
/// struct OrderPaid {
///     order_id: u64,
///     currency: String,
/// }
///
/// fn add_currency(mut old: Value) -> Value {
///     // `old["currency"] = …` would panic if the payload is not an object.
///     if let Some(fields) = old.as_object_mut() {
///         fields.insert("currency".into(), json!("EUR"));
///     }
///     old
/// }
///
/// let paid: OrderPaid = decode_version(1, br#"{"order_id": 7}"#)?;
/// assert_eq!(paid.currency, "EUR");
/// # Ok::<(), tidings::event::VersionError>(())
/// ```
///
/// An aggregate id that consists of several fields:
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tidings::DomainEvent;
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = "seat", id = format!("{}/{}", self.flight, self.seat), type = "seat.taken")]
/// struct SeatTaken {
///     flight: String,
///     seat: String,
/// }
///
/// let event = SeatTaken { flight: "LH1".into(), seat: "12A".into() };
/// assert_eq!(event.aggregate_id(), "LH1/12A");
/// assert_eq!(event.event_type(), "seat.taken");
/// ```
///
/// An implementation without the derive macro:
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// use std::borrow::Cow;
/// use tidings::event::{DomainEvent, Json};
///
/// #[derive(Serialize, Deserialize)]
/// struct Renamed { customer: String }
///
/// impl DomainEvent for Renamed {
///     type Codec = Json;
///     const AGGREGATE: &'static str = "customer";
///     const TYPES: &'static [&'static str] = &["CustomerRenamed"];
///     fn event_type(&self) -> &'static str { Self::TYPES[0] }
///     fn aggregate_id(&self) -> Cow<'_, str> { Cow::Borrowed(&self.customer) }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a domain event",
    label = "this type does not implement `DomainEvent`",
    note = "add `#[derive(serde::Serialize, serde::Deserialize, tidings::DomainEvent)]` and \
            `#[event(aggregate = \"…\", id = \"…\")]` to `{Self}`"
)]
pub trait DomainEvent: Sized + Send + Sync + 'static {
    /// Encodes and decodes the payload. The derive macro sets it to [`Json`] unless `codec = …`
    /// is given.
    type Codec: Codec<Self>;

    /// The type of the aggregate, e.g. `order`. With the relay's default routing, it is also the
    /// name of the Kafka topic.
    const AGGREGATE: &'static str;

    /// All names that [`event_type`](Self::event_type) can return: one for a struct, one per
    /// variant for an enum.
    const TYPES: &'static [&'static str];

    /// The version of the payload's schema. Raise it if a subscriber of the old version could
    /// misread payloads of the new one.
    const VERSION: u32 = 1;

    /// Upcasts a payload of version `from` to version `from + 1`. Returns `None` if there is no
    /// upcast from this version. The derive macro implements it from `upcast(…)` in
    /// `#[event(…)]`.
    fn upcast(from: u32, payload: &[u8]) -> Option<Result<Vec<u8>, CodecError>> {
        let _ = (from, payload);
        None
    }

    /// Returns the event type, e.g. `OrderPlaced`.
    fn event_type(&self) -> &'static str;

    /// Returns the id of the aggregate. It is the Kafka key: events with the same id go to one
    /// partition and stay in order.
    fn aggregate_id(&self) -> Cow<'_, str>;
}
