//! The layer.

use tower::Layer;

use super::{Bulkhead, BulkheadService};

/// Puts a [`Bulkhead`] around a service; see the [module](super) for when not to.
///
/// The error becomes a [`BoxError`](tower::BoxError): the service's own, or [`BulkheadError`](super::BulkheadError). The service has to be
/// `Clone`; it is waited for to be ready once there is a place.
#[derive(Clone, Debug)]
pub struct BulkheadLayer {
    bulkhead: Bulkhead,
}

impl BulkheadLayer {
    /// Calls take their places from this bulkhead.
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
