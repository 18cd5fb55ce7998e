//! tower layer of the bulkhead.

use tower::Layer;

use super::{Bulkhead, BulkheadService};

/// Wraps a service in a [`Bulkhead`]; see the [module](super) for when not to use it.
///
/// The error becomes a [`BoxError`](tower::BoxError): that of the service, or
/// [`BulkheadError`](super::BulkheadError). The service must be `Clone`. A call waits for the
/// readiness of the service after it has got a slot.
#[derive(Clone, Debug)]
pub struct BulkheadLayer {
    bulkhead: Bulkhead,
}

impl BulkheadLayer {
    /// Creates a layer whose calls take their slots from this bulkhead.
    pub fn new(bulkhead: &Bulkhead) -> Self {
        Self {
            bulkhead: bulkhead.clone(),
        }
    }
}

// === impl Layer ===

impl<S> Layer<S> for BulkheadLayer {
    type Service = BulkheadService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BulkheadService::new(inner, self.bulkhead.clone())
    }
}
