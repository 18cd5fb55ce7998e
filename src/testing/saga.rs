//! Test harness for a single saga: the events that it sends, and its reactions to replies and to
//! time.

mod stage;

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;

use stage::Stage;

use super::meta_of;
use crate::event::{DomainEvent, Envelope, headers};
use crate::saga::{Input, Saga, SagaEnded, SagaInstance, SagaState, SagaStatus, Shape};
use crate::subscriber::HandlerError;

/// Run of a saga without Kafka and without a database, created by [`Saga::given`]. Its clock only
/// moves when the test calls [`advance`](Self::advance).
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use std::time::Duration;
/// # use tidings::DomainEvent;
/// # use tidings::saga::Saga;
/// # #[derive(Debug, Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "stock", id = "order_id")]
/// # struct ReserveStock { order_id: i64 }
/// # #[derive(Debug, Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "stock", id = "order_id")]
/// # struct ReleaseStock { order_id: i64 }
/// # #[derive(Debug, Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "stock", id = "order_id")]
/// # struct StockReserved { order_id: i64 }
/// # #[derive(Debug, Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "payment", id = "order_id")]
/// # struct TakePayment { order_id: i64 }
/// # #[derive(Debug, Serialize, Deserialize, DomainEvent)]
/// # #[event(aggregate = "payment", id = "order_id")]
/// # struct PaymentRefused { order_id: i64 }
/// # #[derive(Clone, Serialize, Deserialize)]
/// # struct PlaceOrder { order_id: i64 }
/// # let place_order = || Saga::<PlaceOrder>::new("place-order")
/// #     .step("reserve-stock").command(|s| ReserveStock { order_id: s.order_id })
/// #     .on::<StockReserved>(|_, _| ())
/// #     .compensate(|s| ReleaseStock { order_id: s.order_id })
/// #     .step("pay").command(|s| TakePayment { order_id: s.order_id })
/// #     .fails_on::<PaymentRefused>(|_, _| "no money".into())
/// #     .timeout(Duration::from_secs(30));
/// place_order()
///     .given(PlaceOrder { order_id: 7 })
///     .expect::<ReserveStock>()
///     .reply(StockReserved { order_id: 7 })
///     .expect::<TakePayment>()
///     .reply(PaymentRefused { order_id: 7 })
///     .expect::<ReleaseStock>()
///     .expect_compensated(["reserve-stock"]);
/// ```
pub struct SagaTest<S> {
    saga: Saga<S>,
    shape: Shape,
    instance: SagaInstance<S>,
    now: DateTime<Utc>,
    effects: Stage<S>,
    /// Number of sent events that the test has expected so far.
    expected: usize,
}

impl<S: SagaState> Saga<S> {
    /// Creates a test run with this state.
    #[must_use]
    pub fn given(&self, state: S) -> SagaTest<S> {
        let shape = self.shape();
        let instance = SagaInstance {
            id: uuid::Uuid::now_v7(),
            key: "test".into(),
            state,
            progress: shape.plan(),
            correlation_id: None,
        };
        let effects = Stage {
            sent: Vec::new(),
            ended: Vec::new(),
            locals: HashMap::new(),
        };
        SagaTest {
            saga: self.clone(),
            shape,
            instance,
            now: DateTime::UNIX_EPOCH,
            effects,
            expected: 0,
        }
    }
}

impl<S: SagaState> SagaTest<S> {
    /// Sets the function that replaces a local step, since no database is available to run it.
    /// Without a replacement, the step does nothing and succeeds. An error counts as in a service:
    /// [`HandlerError::dead_letter`] fails the step at once. Call this before the first
    /// expectation.
    pub fn local(
        mut self,
        step: &str,
        stand_in: impl Fn(S) -> Result<S, HandlerError> + Send + 'static,
    ) -> Self {
        self.effects.replace(step, false, stand_in);
        self
    }

    /// Sets the function that replaces a local compensation.
    pub fn local_compensation(
        mut self,
        step: &str,
        stand_in: impl Fn(S) -> Result<S, HandlerError> + Send + 'static,
    ) -> Self {
        self.effects.replace(step, true, stand_in);
        self
    }

    /// Asserts that the next event sent by the saga is a `C`.
    ///
    /// # Panics
    ///
    /// Panics if it is not, like all methods that begin with `expect`.
    #[track_caller]
    pub fn expect<C: DomainEvent>(self) -> Self {
        self.expect_such::<C>(|_| true)
    }

    /// Asserts that the next event sent by the saga is a `C` that satisfies the predicate.
    ///
    /// # Panics
    ///
    /// Panics if it is not.
    #[track_caller]
    pub fn expect_such<C: DomainEvent>(mut self, such: impl FnOnce(&C) -> bool) -> Self {
        self.begin();
        let name = std::any::type_name::<C>();
        let Some(envelope) = self.effects.sent.get(self.expected) else {
            panic!(
                "{name} is expected, and no further event is sent: {}",
                self.story()
            )
        };
        assert!(
            C::TYPES.contains(&&*envelope.event_type),
            "{name} is expected, and `{}` is sent: {}",
            envelope.event_type,
            self.story()
        );
        let command = envelope
            .decode::<C>()
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(
            such(&command),
            "{name} is sent, but does not satisfy the predicate: {}",
            self.story()
        );
        self.expected += 1;
        self
    }

    /// Asserts that the saga has sent no further event.
    ///
    /// # Panics
    ///
    /// Panics if it has sent one.
    #[track_caller]
    pub fn expect_nothing(mut self) -> Self {
        self.begin();
        assert_eq!(
            self.effects.sent.len(),
            self.expected,
            "no further event is expected: {}",
            self.story()
        );
        self
    }

    /// Delivers a reply, caused by the last expected event.
    ///
    /// # Panics
    ///
    /// Panics if no event has been expected yet, or if the reply cannot be decoded.
    #[track_caller]
    pub fn reply<E: DomainEvent>(self, event: E) -> Self {
        let last = self
            .expected
            .checked_sub(1)
            .unwrap_or_else(|| panic!("expect a command before its reply"));
        self.reply_by(last, &event)
    }

    /// Delivers a reply, caused by the last event `C` that was sent. Use it for late replies and
    /// replies out of order.
    ///
    /// # Panics
    ///
    /// Panics if no `C` was sent, or if the reply cannot be decoded.
    #[track_caller]
    pub fn reply_to<C: DomainEvent>(self, event: impl DomainEvent) -> Self {
        let last = self
            .effects
            .sent
            .iter()
            .rposition(|envelope| C::TYPES.contains(&&*envelope.event_type));
        let last = last.unwrap_or_else(|| {
            panic!(
                "no {} is sent: {}",
                std::any::type_name::<C>(),
                self.story()
            )
        });
        self.reply_by(last, &event)
    }

    /// Advances the clock and triggers everything that becomes due on the way.
    ///
    /// # Panics
    ///
    /// Panics if the saga returns an error.
    #[track_caller]
    pub fn advance(mut self, time: Duration) -> Self {
        self.begin();
        let end = self.now + time;
        while let Some(due) = self
            .shape
            .due_at(&self.instance.progress, self.now)
            .filter(|due| *due <= end)
        {
            self.now = self.now.max(due);
            self.drive(Input::Due);
        }
        self.now = end;
        self
    }

    /// Asserts that the saga has completed all of its steps.
    ///
    /// # Panics
    ///
    /// Panics if it has not.
    #[track_caller]
    pub fn expect_completed(self) -> Self {
        self.expect_ended(SagaStatus::Completed)
    }

    /// Asserts that the saga was compensated and that these steps are undone, in this order. The
    /// events of the compensations may be expected before, but need not be.
    ///
    /// # Panics
    ///
    /// Panics if it has not.
    #[track_caller]
    pub fn expect_compensated<'s>(self, steps: impl IntoIterator<Item = &'s str>) -> Self {
        let test = self.expect_ended(SagaStatus::Compensated);
        let steps: Vec<&str> = steps.into_iter().collect();
        assert_eq!(
            test.instance.progress.undone,
            steps,
            "undone steps: {}",
            test.story()
        );
        test
    }

    /// Asserts that the saga has failed: it could be neither completed nor compensated.
    ///
    /// # Panics
    ///
    /// Panics if it has not.
    #[track_caller]
    pub fn expect_failed(self) -> Self {
        self.expect_ended(SagaStatus::Failed)
    }

    /// Returns the status of the saga.
    pub fn status(&self) -> SagaStatus {
        self.instance.progress.status
    }

    /// Returns the state of the saga.
    pub fn state(&self) -> &S {
        &self.instance.state
    }

    /// Returns the event that the saga published when it ended, or `None` if it has not ended.
    pub fn ended(&self) -> Option<&SagaEnded> {
        self.effects.ended.last()
    }

    #[track_caller]
    fn expect_ended(mut self, status: SagaStatus) -> Self {
        self.begin();
        assert_eq!(self.status(), status, "{}", self.story());
        assert_eq!(
            self.ended().map(|ended| ended.outcome),
            Some(status),
            "{}",
            self.story()
        );
        self
    }

    #[track_caller]
    fn begin(&mut self) {
        if self.status() == SagaStatus::Waiting {
            self.drive(Input::Start);
        }
    }

    #[track_caller]
    fn reply_by<E: DomainEvent>(mut self, command: usize, event: &E) -> Self {
        let mut envelope = Envelope::of(event).unwrap_or_else(|error| panic!("{error}"));
        envelope.set_cause(&self.effects.sent[command]);
        debug_assert_eq!(
            envelope.headers.get(headers::CORRELATION_ID),
            Some(&*self.instance.id.to_string())
        );
        let (meta, cause) = (meta_of(&envelope), self.effects.sent[command].id.as_uuid());
        if self
            .shape
            .awaits(&self.instance.progress, meta.event_type(), Some(cause))
        {
            let input = self
                .saga
                .take(&mut self.instance, &meta)
                .unwrap_or_else(|error| panic!("the reply cannot be decoded: {error}"));
            self.drive(input);
        }
        self
    }

    #[track_caller]
    fn drive(&mut self, input: Input) {
        let driven = self
            .saga
            .drive(
                &self.shape,
                &mut self.instance,
                input,
                self.now,
                &mut self.effects,
            )
            .now_or_never();
        driven
            .expect("the test never waits for I/O")
            .unwrap_or_else(|error| panic!("the saga cannot continue: {error}"));
    }

    fn story(&self) -> String {
        let sent: Vec<_> = self
            .effects
            .sent
            .iter()
            .map(|envelope| &*envelope.event_type)
            .collect();
        let progress = &self.instance.progress;
        format!(
            "{} at {:?}, sent {sent:?}, done {:?}, undone {:?}, error {:?}",
            progress.status.word(),
            progress.current.as_ref().map(|current| &current.step),
            progress.done,
            progress.undone,
            progress.error(),
        )
    }
}

// === impl SagaTest ===

impl<S: SagaState> std::fmt::Debug for SagaTest<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SagaTest").field(&self.story()).finish()
    }
}
