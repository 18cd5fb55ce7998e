//! Events that the services exchange, the only code that they share. In a real system this is a
//! crate, or a set of schemas in a registry.
//!
//! The aggregate type is the topic. All commands of a service are in one topic, so that the
//! commands for an order keep their order.

use serde::{Deserialize, Serialize};
use tidings::DomainEvent;
use uuid::Uuid;

macro_rules! events {
    ($($(#[$about:meta])* $topic:literal: $name:ident { $($field:ident: $type:ty),* };)*) => {
        $(
            $(#[$about])*
            #[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
            #[event(aggregate = $topic, id = "order_id")]
            pub(crate) struct $name { pub(crate) order_id: Uuid, $(pub(crate) $field: $type),* }
        )*
    };
}

/// Every topic.
pub(crate) const TOPICS: [&str; 8] = [
    "order",
    "inventory.commands",
    "inventory.events",
    "payment.commands",
    "payment.events",
    "shipping.commands",
    "shipping.events",
    "gateway.events",
];

events! {
    "order": OrderPlaced {
        customer: String, country: String, article: String, quantity: i32, cents: i64
    };
    "order": OrderCompleted { customer: String };
    "order": OrderCancelled { customer: String, reason: String };

    "inventory.commands": ReserveStock { article: String, quantity: i32 };
    /// Compensates [`ReserveStock`].
    "inventory.commands": ReleaseStock {};
    "inventory.events": StockReserved {};
    "inventory.events": StockRefused { reason: String };

    "payment.commands": TakePayment { customer: String, cents: i64 };
    /// Compensates [`TakePayment`].
    "payment.commands": RefundPayment {};
    "payment.events": PaymentTaken {};
    "payment.events": PaymentRefused { reason: String };

    "shipping.commands": ShipOrder { country: String };
    "shipping.events": OrderShipped {};
    "shipping.events": ShippingRefused { reason: String };
}

/// The gateway has stopped or resumed calling a service.
#[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "gateway.events", id = "service")]
pub(crate) struct CircuitChanged {
    pub(crate) service: String,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) cause: String,
}
