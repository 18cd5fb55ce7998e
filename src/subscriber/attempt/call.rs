//! One call of the handlers, in its own span. A panic counts as a failed attempt.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tracing::Span;

use super::{Runner, spans};
use crate::{
    event::panic_text,
    kafka::Message,
    subscriber::{
        Delivery,
        handler::{
            Called, HandlerError, Verdict,
            router::{Handled, Work},
        },
    },
};

/// An attempt that has begun. A panic counts as a failed attempt.
pub(crate) struct Attempt {
    span: Span,
    began: Instant,
    state: AttemptState,
}

enum AttemptState {
    Runs(Work),
    /// The attempt has ended, and its result has not been taken yet.
    Ended(Option<Result<Handled, HandlerError>>),
}

impl Future for Attempt {
    type Output = Result<Handled, HandlerError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let _entered = this.span.enter();
        let polled = match &mut this.state {
            AttemptState::Runs(work) => {
                std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(work).poll(cx)))
                    .unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
            }
            AttemptState::Ended(end) => Poll::Ready(end.take().expect("polled once")),
        };
        if let Poll::Ready(Err(error)) = &polled {
            mark_failed(&this.span, error);
        }
        polled
    }
}

impl Runner {
    /// Makes one attempt.
    pub(crate) async fn attempt(&self, delivery: Delivery) -> Result<Handled, HandlerError> {
        let first = delivery.first().clone();
        self.end_of(self.begin(delivery, Instant::now(), &mut None), &first)
            .await
    }

    /// Begins an attempt in its own span.
    pub(super) fn begin(
        &self,
        delivery: Delivery,
        began: Instant,
        pool: &mut Option<Called>,
    ) -> Attempt {
        let span = self.span(&delivery);
        // Handlers and layers are cloned for each attempt, and a `Clone` implementation may panic.
        let work =
            std::panic::catch_unwind(AssertUnwindSafe(|| self.service.begin(delivery, pool)));
        let state = work.map_or_else(
            |panic| AttemptState::Ended(Some(Err(panicked(&*panic)))),
            AttemptState::Runs,
        );
        Attempt { span, began, state }
    }

    /// Waits for the result of an attempt at an event.
    pub(super) async fn end_of(
        &self,
        mut attempt: Attempt,
        message: &Message,
    ) -> Result<Handled, HandlerError> {
        let result = (&mut attempt).await;
        self.statistics
            .of(message.kind())
            .attempted(attempt.began.elapsed());
        let Err(error) = result else { return result };
        let waits_for_code = self.options.wait_for_newer_code && error.asks_for_newer_code();
        let met_silence =
            error.ran_out_of_time() && self.was_database_silent_since(attempt.began).await;
        if let Some(simulation) = self.core.simulation() {
            simulation.failed(message, &error);
        }
        Err(if waits_for_code || met_silence {
            error.waited_out()
        } else {
            error
        })
    }

    async fn was_database_silent_since(&self, began: Instant) -> bool {
        let Some(inbox) = &self.core.inbox else {
            return false;
        };
        inbox.pulse.was_silent_since(began.into()).await
    }

    /// Handles a message immediately if its handlers do not wait and do not fail. Nothing else is
    /// needed for it then. Otherwise returns the attempt that has begun, and
    /// [`settle`](Self::settle) continues it. `now` is set to the time after polling.
    pub(crate) fn handle_now(
        &self,
        message: &Arc<Message>,
        now: &mut Instant,
        pool: &mut Option<Called>,
    ) -> Result<(), Attempt> {
        let mut attempt = self.begin(Delivery::one(message.clone(), 1), *now, pool);
        let polled = Pin::new(&mut attempt).poll(&mut Context::from_waker(Waker::noop()));
        *now = Instant::now();
        match polled {
            Poll::Ready(Ok(handled)) => {
                let counters = self.statistics.of(message.kind());
                counters.attempted(*now - attempt.began);
                self.handled_by(handled, counters, 1);
                if let AttemptState::Runs(Work::Handler(called)) = attempt.state {
                    *pool = Some(called);
                }
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(Attempt {
                state: AttemptState::Ended(Some(Err(error))),
                ..attempt
            }),
            // The waker does nothing. The task that continues the attempt polls it at once.
            Poll::Pending => Err(attempt),
        }
    }

    /// Returns the span for everything that is logged during an attempt.
    fn span(&self, delivery: &Delivery) -> Span {
        let event = delivery.first();
        let record = event.as_it_came();
        let span = tracing::info_span!(
            "handle",
            otel.name = tracing::field::Empty,
            otel.kind = "consumer",
            subscriber = self.name,
            event.id = &*event.id(),
            event.r#type = event.event_type(),
            aggregate = &*event.aggregate_id(),
            attempt = delivery.attempt(),
            events = delivery.len(),
            topic = &*record.topic,
            partition = record.partition,
            offset = record.offset,
            traceparent = event.header("traceparent"),
            otel.status_code = tracing::field::Empty,
            error = tracing::field::Empty,
        );
        spans::follow(&span, delivery, &self.name, self.options.trace);
        span
    }
}

/// Marks the span of a failed attempt. An event that is skipped or postponed is not a failure.
fn mark_failed(span: &Span, error: &HandlerError) {
    if matches!(
        error.verdict(),
        Verdict::Retry | Verdict::DeadLetter | Verdict::Unavailable
    ) && !span.is_disabled()
    {
        span.record("otel.status_code", "ERROR");
        span.record("error", error.chain());
        spans::fail(span, kind_of(error.verdict()));
    }
}

/// Returns the kind of error for the attribute `error.type`.
fn kind_of(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Retry => "retry",
        Verdict::DeadLetter => "dead_letter",
        Verdict::Unavailable => "unavailable",
        Verdict::Skip => "skip",
        Verdict::Snooze(_) => "snooze",
    }
}

/// Returns the error of an attempt that panicked.
fn panicked(panic: &(dyn Any + Send)) -> HandlerError {
    HandlerError::retry(format!("the handler panicked: {}", panic_text(panic)))
}
