//! What an event is: its name, what it is about, its data, and what travels with it.
//!
//! A [`DomainEvent`] is a Rust type of the application. An [`Envelope`] is one occurrence of it, ready for a row or a record: an id, the aggregate,
//! a type and version, a [`Payload`] and [`Headers`]. A [`Codec`] turns the one into the other; [`Json`] unless the event says otherwise.
//!
//! Nothing here does I/O: it is the part that publishers, the relay and subscribers share.
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

/// Something that happened to an aggregate, as a Rust type: what [`publish`](crate::outbox) takes and what a handler receives.
///
/// Derive it. The derive macro knows these keys in `#[event(…)]`:
///
/// | key | on | meaning |
/// |---|---|---|
/// | `aggregate = "order"` | struct, enum | the kind of thing the event is about; required. Letters, digits, `.`, `_`, `-`: it becomes a topic name |
/// | `id = "order_id"` | struct, enum, variant | the field that identifies the aggregate (`"0"` in a tuple struct); any `Display` type. Required |
/// | `id = self.key()` | struct, enum | the same by an expression over `self` |
/// | `type = "order.placed"` | struct, variant | the event's name; otherwise the name of the struct or the variant |
/// | `version = 2` | struct, enum | the version of the payload's schema; otherwise 1 |
/// | `upcast(from = 1, with = path)` | struct, enum | lifts a JSON payload of version 1 to version 2: a function from the old shape to the next. Once for each old version from the oldest that is read; a gap does not compile |
/// | `codec = Protobuf` | struct, enum | the [`Codec`] of the payload; otherwise [`Json`] |
///
/// The event's name is a contract with subscribers: give `type` before renaming a struct.
///
/// # Examples
///
/// An enum holds several event types, one a variant. How a variant reads in JSON is serde's business (`#[serde(tag = "kind")]` and so on).
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
/// A version that changed, and how payloads of the old one are lifted when a subscriber reads them:
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// use serde_json::{Value, json};
/// use tidings::DomainEvent;
/// use tidings::event::decode_version;
///
/// #[derive(Serialize, Deserialize, DomainEvent)]
/// #[event(aggregate = "order", id = "order_id", version = 2, upcast(from = 1, with = add_currency))]
/// struct OrderPaid {
///     order_id: u64,
///     currency: String,
/// }
///
/// fn add_currency(mut old: Value) -> Value {
///     // `old["currency"] = …` would panic at a payload that is not an object.
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
/// An id that is more than one field:
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
/// By hand, where the names are only known to the code:
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
    label = "this type does not say what it is about",
    note = "add `#[derive(serde::Serialize, serde::Deserialize, tidings::DomainEvent)]` and `#[event(aggregate = \"…\", id = \"…\")]` to `{Self}`"
)]
pub trait DomainEvent: Sized + Send + Sync + 'static {
    /// How the event becomes a payload and back: [`Json`] unless `codec = …` says otherwise.
    type Codec: Codec<Self>;

    /// The kind of thing the event is about, e.g. `order`. With the relay's default routing also the name of the Kafka topic.
    const AGGREGATE: &'static str;

    /// Every name [`event_type`](Self::event_type) can return: one for a struct, one per variant for an enum.
    const TYPES: &'static [&'static str];

    /// The version of the payload's schema. Raise it when a subscriber of the old one could misread the new one.
    const VERSION: u32 = 1;

    /// Lifts a payload of version `from` to version `from + 1`; `None` if nothing says how. `upcast(…)` in `#[event(…)]` writes it.
    fn upcast(from: u32, payload: &[u8]) -> Option<Result<Vec<u8>, CodecError>> {
        let _ = (from, payload);
        None
    }

    /// The name of this event, e.g. `OrderPlaced`.
    fn event_type(&self) -> &'static str;

    /// Which aggregate it happened to. The Kafka key: events of one id stay in order, and reach one partition.
    fn aggregate_id(&self) -> Cow<'_, str>;
}
