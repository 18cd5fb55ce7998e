//! The innermost service: routes a delivery to the handlers of its type, in one transaction if
//! there is an inbox.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use super::{BoundHandler, Called, HandlerError, TxSlot};
use crate::{
    event::Envelope,
    failpoint::{self, Step},
    kafka::Message,
    subscriber::{
        ByType, Delivery,
        in_memory::simulation::Simulation,
        inbox::{OpenInbox, Remembered, database_watch, pipelined_tx},
    },
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Outcome of a successful attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handled {
    /// The handlers ran, and their effect is committed.
    Done,
    /// The inbox has recorded the event already, so no handler ran.
    Duplicate,
}

/// The handlers of each type.
pub(crate) struct Router {
    routes: ByType<Route>,
    /// Handlers of tombstones, by kind.
    tombstones: ByType<Route>,
}

/// The handlers of one type.
#[derive(Default)]
pub(crate) struct Route {
    pub(crate) handlers: Vec<Arc<dyn BoundHandler>>,
    /// True if the handlers take several events at once.
    pub(crate) batch: bool,
}

impl Router {
    pub(crate) fn new(routes: ByType<Route>, tombstones: ByType<Route>) -> Self {
        Self { routes, tombstones }
    }

    /// Returns the handlers of an event or a tombstone.
    pub(crate) fn route(&self, message: &Message) -> Option<&Route> {
        if message.is_tombstone() {
            self.tombstones.get(message.kind())
        } else {
            self.routes.get(message.kind())
        }
    }

    /// Returns the names of the handlers of an event or a tombstone, for logs.
    pub(crate) fn handlers_of(&self, message: &Message) -> String {
        let names = self
            .route(message)
            .into_iter()
            .flat_map(|route| route.handlers.iter().map(|handler| handler.name()));
        names.collect::<Vec<_>>().join(", ")
    }

    /// Returns each type with the names of its handlers, for logs.
    pub(crate) fn summary(&self) -> String {
        let handlers = |(event_type, route): (_, &Route)| {
            let names: Vec<&str> = route
                .handlers
                .iter()
                .map(|handler| handler.name())
                .collect();
            format!("{event_type}: {}", names.join(", "))
        };
        let mut lines: Vec<String> = self
            .routes
            .iter()
            .chain(&self.tombstones)
            .map(handlers)
            .collect();
        lines.sort_unstable();
        lines.join("; ")
    }

    /// Returns the sorted event types and tombstone kinds that have handlers.
    pub(crate) fn types(&self) -> Vec<String> {
        let mut types: Vec<String> = self
            .routes
            .keys()
            .chain(self.tombstones.keys())
            .map(ToString::to_string)
            .collect();
        types.sort_unstable();
        types
    }

    /// Calls each handler of the delivery's type. Returns the events that they publish.
    async fn call(&self, delivery: Delivery) -> Result<Vec<Envelope>, HandlerError> {
        let route = self
            .route(delivery.first())
            .ok_or_else(|| HandlerError::skip("no handler"))?;
        let mut published = Vec::new();
        for handler in &route.handlers {
            let first = published.len();
            published.append(&mut handler.call(delivery.clone(), None).await?);
            let cause = delivery.meta();
            published[first..]
                .iter_mut()
                .for_each(|envelope| cause.cause(envelope));
        }
        Ok(published)
    }
}

/// The inbox and the router, which all layers wrap.
pub(crate) struct Core {
    pub(crate) router: Router,
    pub(crate) inbox: Option<Arc<OpenInbox>>,
    /// Set on the in-memory bus: replaces the cluster, and the database if there is none.
    pub(crate) in_memory: OnceLock<Simulation>,
}

impl Core {
    pub(crate) fn new(router: Router, inbox: Option<Arc<OpenInbox>>) -> Self {
        Self {
            router,
            inbox,
            in_memory: OnceLock::new(),
        }
    }

    /// Makes this a core of the in-memory bus.
    pub(crate) fn simulate(&self, simulation: Simulation) {
        let _ = self.in_memory.set(simulation);
    }

    pub(crate) fn simulation(&self) -> Option<&Simulation> {
        self.in_memory.get()
    }

    /// Begins to handle a delivery. A single event for a single handler without a transaction needs
    /// only the handler's own future, which is the most frequent case.
    fn begin(self: &Arc<Self>, delivery: Delivery, pool: &mut Option<Called>) -> Work {
        if self.inbox.is_none()
            && self.simulation().is_none()
            && delivery.len() == 1
            && let Some([handler]) = self
                .router
                .route(delivery.first())
                .map(|route| &route.handlers[..])
        {
            return Work::Handler(handler.call(delivery, pool.take()));
        }
        let core = self.clone();
        Work::Service(Box::pin(async move { core.handle(delivery).await }))
    }

    async fn handle(&self, delivery: Delivery) -> Result<Handled, HandlerError> {
        match (&self.inbox, self.simulation()) {
            (Some(inbox), _) => self.handle_once(inbox, delivery).await,
            (None, Some(simulation)) => self.handle_in_memory(simulation, delivery).await,
            (None, None) => self.each(delivery).await.map(|_| Handled::Done),
        }
    }

    async fn handle_in_memory(
        &self,
        simulation: &Simulation,
        delivery: Delivery,
    ) -> Result<Handled, HandlerError> {
        let Some(new) = simulation.new_of(&delivery)? else {
            return Ok(Handled::Duplicate);
        };
        let published = self.each(delivery.with_messages(new.clone())).await?;
        self.may_die()?;
        simulation.commit(&new, published)?;
        Ok(Handled::Done)
    }

    fn may_die(&self) -> Result<(), HandlerError> {
        self.simulation().map_or(Ok(()), Simulation::may_die)
    }

    /// Handles a delivery in one transaction. If that takes long, the database is queried to detect
    /// an outage.
    async fn handle_once(
        &self,
        inbox: &Arc<OpenInbox>,
        delivery: Delivery,
    ) -> Result<Handled, HandlerError> {
        let mut work = std::pin::pin!(self.handle_in_transaction(inbox, delivery));
        if let Ok(done) = tokio::time::timeout(database_watch::LONG, &mut work).await {
            return done;
        }
        let _long = inbox.pulse.take_long();
        work.await
    }

    /// Records the events, calls the handlers, publishes and commits, in one transaction.
    async fn handle_in_transaction(
        &self,
        inbox: &Arc<OpenInbox>,
        delivery: Delivery,
    ) -> Result<Handled, HandlerError> {
        let (transaction, lease, new) = match inbox.remember(delivery.messages()).await? {
            Remembered::Duplicate => return Ok(Handled::Duplicate),
            Remembered::New(transaction, lease, new) => (transaction, lease, new),
        };
        let slot = TxSlot::new(transaction, inbox.outbox.clone(), inbox.schema.clone());
        let published = match self.each(delivery.within(slot.clone(), new)).await {
            Ok(published) => published,
            Err(error) => {
                // Ends the transaction now, so that the connection is free during the pause and not
                // only at its next use.
                match slot.take() {
                    Some(transaction) if error.ends_session() => lease.close(transaction).await,
                    Some(transaction) => lease.roll_back(transaction).await,
                    None => {}
                }
                return Err(error);
            }
        };
        let kept = || {
            HandlerError::retry(
                "the handler kept its `Tx` beyond its end, or a savepoint of it could not begin: \
                 nothing can be committed",
            )
        };
        let mut transaction = slot.take().ok_or_else(kept)?;
        self.may_die()?;
        if !published.is_empty() {
            inbox
                .outbox
                .publish_envelopes(&mut transaction, &published)
                .await?;
        }
        failpoint::reached(Step::EffectMade);
        lease.commit(transaction).await.map_err(|error| {
            if pipelined_tx::could_not(&error) {
                swallowed()
            } else {
                error.into()
            }
        })?;
        slot.committed();
        failpoint::reached(Step::EffectCommitted);
        Ok(Handled::Done)
    }

    /// Calls the handlers. Handlers of batches receive a batch as a whole, others receive its
    /// events one by one.
    async fn each(&self, delivery: Delivery) -> Result<Vec<Envelope>, HandlerError> {
        let whole = delivery.len() == 1
            || self
                .router
                .route(delivery.first())
                .is_some_and(|route| route.batch);
        if whole {
            return self.router.call(delivery).await;
        }
        let mut published = Vec::new();
        for single in delivery.singly() {
            published.append(&mut self.router.call(single).await?);
        }
        Ok(published)
    }
}

/// Returns the error of a handler that ignored an error of Postgres and returned `Ok`.
fn swallowed() -> HandlerError {
    HandlerError::retry(
        "a statement of the handler failed, or ended its transaction, and it returned `Ok`: \
         Postgres does not commit it; use a savepoint (`tx.savepoint()`) around what may fail",
    )
}

/// The innermost service, around which [`Subscriber::layer`](crate::Subscriber::layer) adds layers.
#[derive(Clone)]
pub struct HandlerService(Inner);

#[derive(Clone)]
enum Inner {
    Core(Arc<Core>),
    Layered(BoxCloneSyncService<Delivery, Handled, BoxError>),
}

impl HandlerService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self(Inner::Core(core))
    }

    /// Wraps a service around the inner one.
    pub(crate) fn layered<S>(service: S) -> Self
    where
        S: Service<Delivery, Response = Handled, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Error: Into<BoxError>,
    {
        Self(Inner::Layered(BoxCloneSyncService::new(
            service.map_err(Into::into),
        )))
    }

    /// Begins one attempt. If possible, it reuses the future of one that has ended.
    pub(crate) fn begin(&self, delivery: Delivery, pool: &mut Option<Called>) -> Work {
        match &self.0 {
            Inner::Core(core) => core.begin(delivery, pool),
            Inner::Layered(service) => {
                let service = service.clone();
                Work::Service(Box::pin(async move {
                    service
                        .oneshot(delivery)
                        .await
                        .map_err(HandlerError::from_layer)
                }))
            }
        }
    }
}

/// The future of one attempt.
pub(crate) enum Work {
    /// A handler of a subscriber without an inbox. Its type ensures that it publishes nothing.
    Handler(Called),
    /// Any other case.
    Service(Pin<Box<dyn Future<Output = Result<Handled, HandlerError>> + Send>>),
}

impl Future for Work {
    type Output = Result<Handled, HandlerError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Handler(called) => called.poll(cx).map_ok(|_| Handled::Done),
            Self::Service(work) => work.as_mut().poll(cx),
        }
    }
}

impl std::fmt::Debug for HandlerService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandlerService").finish_non_exhaustive()
    }
}

impl Service<Delivery> for HandlerService {
    type Response = Handled;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Handled, BoxError>> + Send>>;

    /// Always ready, because concurrency is limited before this service is called.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        let work = self.begin(delivery, &mut None);
        Box::pin(async move { work.await.map_err(Into::into) })
    }
}
