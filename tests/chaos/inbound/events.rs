//! Events of a history: bookings on accounts, and the commands and replies of the saga that places
//! orders.

use serde::{Deserialize, Serialize};
use tidings::DomainEvent;

/// The topic of bookings. The relay uses the same topic template as in the outbound histories.
pub(crate) const ACCOUNT_TOPIC: &str = "chaos-account";

/// The name of the subscriber that handles bookings, which is also its group.
pub(crate) const LEDGER: &str = "ledger";

/// The name of the subscriber that runs the saga and the services that it commands.
pub(crate) const SHOP: &str = "shop";

/// The topics of the subscriber [`SHOP`].
pub(crate) const SHOP_TOPICS: [&str; 4] = [
    "chaos-order",
    "chaos-stock",
    "chaos-payment",
    "chaos-parcel",
];

/// The topic for the outcomes of sagas, which has no subscriber.
pub(crate) const SAGA_TOPIC: &str = "chaos-saga";

/// A booking of any type.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Booking {
    pub(crate) account: String,
    pub(crate) version: i64,
    /// The number of attempts that the handler must fail.
    pub(crate) fails: u32,
}

/// An event type of bookings.
pub(crate) trait Booked: DomainEvent {
    fn booking(self) -> Booking;
}

macro_rules! bookings {
    ($($Event:ident)*) => {
        /// The types of bookings. The first release handles two of them, and each later release one
        /// more.
        pub(crate) const BOOKING_TYPES: &[&str] = &[$(stringify!($Event)),*];

        $(
            #[derive(Debug, Serialize, Deserialize, DomainEvent)]
            #[event(aggregate = "account", id = "account")]
            pub(crate) struct $Event {
                account: String,
                version: i64,
                fails: u32,
            }

            impl From<Booking> for $Event {
                fn from(booking: Booking) -> Self {
                    let Booking { account, version, fails } = booking;
                    Self { account, version, fails }
                }
            }

            impl Booked for $Event {
                fn booking(self) -> Booking {
                    let Self { account, version, fails } = self;
                    Booking { account, version, fails }
                }
            }
        )*
    };
}

bookings! { Deposited Withdrawn Renamed Frozen Closed }

/// The number of types that the first release handles.
pub(crate) const FIRST_TYPES: usize = 2;

macro_rules! events {
    ($($aggregate:literal $Event:ident { $($field:ident: $ty:ty),* })*) => {$(
        #[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
        #[event(aggregate = $aggregate, id = "order_id")]
        pub(crate) struct $Event { pub(crate) order_id: i64, $(pub(crate) $field: $ty),* }
    )*};
}

events! {
    "order" OrderPlaced { quantity: i64, cents: i64, refused_by: String, fails: u32 }
    "stock" ReserveStock { quantity: i64, refuse: bool, fails: u32 }
    "stock" StockReserved {}
    "stock" StockRefused {}
    "stock" ReleaseStock {}
    "stock" NoteStock {}
    "stock" InspectStock {}
    "stock" StockInspected {}
    "payment" TakePayment { cents: i64, refuse: bool, silent: bool, fails: u32 }
    "payment" PaymentTaken {}
    "payment" PaymentRefused {}
    "payment" RefundPayment {}
    "parcel" SendParcel { refuse: bool, fails: u32 }
    "parcel" ParcelSent {}
    "parcel" ParcelRefused {}
}

/// The command types. A handler must record exactly one effect for each of their events.
pub(crate) const COMMANDS: [&str; 7] = [
    "ReserveStock",
    "ReleaseStock",
    "NoteStock",
    "InspectStock",
    "TakePayment",
    "RefundPayment",
    "SendParcel",
];
