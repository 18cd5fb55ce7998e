//! Reader of one database for all open tabs.
//!
//! A sampler reads every two seconds while a tab is open, and every ten seconds otherwise, so that
//! the charts have no gap when a tab opens. All tabs receive the same sample through a
//! `tokio::sync::watch` channel. The history is a ring with one point for every ten seconds of the
//! last hour.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::error::ConsoleError;
use super::source::Source;
use crate::inspect::{
    relays::Status,
    subscribers::{ParkedTopic, parked_topics},
};

/// Interval while a tab is open.
const WATCHED_EVERY: Duration = Duration::from_secs(2);

/// Interval while no tab is open.
const IDLE_EVERY: Duration = Duration::from_secs(10);

/// Time limit of one sample. A sample takes a few milliseconds.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Unpublished events of a relay that are counted exactly; larger numbers are estimated. The count
/// takes 5 to 10 µs per event.
const COUNTED_MAX: i64 = 1_000;

/// Time that one point of the history covers.
const POINT_SECONDS: i64 = 10;

/// Points of the history: one hour.
pub(super) const POINTS_MAX: usize = 360;

/// Relays with a history. A database has a few; the bound protects against generated names.
const RELAYS_MAX: usize = 64;

/// Latest state of a database.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// The last state that was read. It is kept while the database does not respond.
    pub(super) read: Option<Arc<Reading>>,
    /// The error of the latest read.
    pub(super) error: Option<ConsoleError>,
}

/// State of a database at one time.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) at: DateTime<Utc>,
    pub(super) status: Status,
    /// Parked events of subscribers, by subscriber.
    pub(super) subscribers: Vec<(String, ParkedTopic)>,
}

/// One point of a relay's history.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// Start of the interval, in units of [`POINT_SECONDS`].
    pub(super) slot: i64,
    /// Total number of published events, at the end of the interval.
    pub(super) published: i64,
    pub(super) lag_events: Option<i64>,
    pub(super) lag_seconds: Option<f64>,
}

/// The last hour of every relay of a database.
#[derive(Debug, Default)]
pub(super) struct History(BTreeMap<String, VecDeque<Point>>);

impl History {
    /// Adds a reading. The values of one interval are merged: the largest lag, the latest total.
    pub(super) fn add(&mut self, reading: &Reading) {
        let slot = reading.at.timestamp() / POINT_SECONDS;
        self.0.retain(|name, _| {
            reading
                .status
                .relays
                .iter()
                .any(|relay| relay.name == *name)
        });
        for relay in reading.status.relays.iter().take(RELAYS_MAX) {
            let points = self.0.entry(relay.name.clone()).or_default();
            let mut point = Point {
                slot,
                published: relay.published,
                lag_events: relay.lag.events_estimate.or(relay.lag.events),
                lag_seconds: relay.lag.seconds,
            };
            if let Some(last) = points.back().copied().filter(|last| last.slot == slot) {
                point.lag_events = point.lag_events.max(last.lag_events);
                point.lag_seconds = larger(point.lag_seconds, last.lag_seconds);
                points.pop_back();
            }
            points.push_back(point);
            let oldest = slot - POINTS_MAX as i64;
            while points.front().is_some_and(|point| point.slot <= oldest) {
                points.pop_front();
            }
        }
    }

    /// Returns the points of a relay.
    pub(super) fn of(&self, relay: &str) -> Vec<Point> {
        self.0
            .get(relay)
            .map(|points| points.iter().copied().collect())
            .unwrap_or_default()
    }
}

/// Returns the published events per second for each interval, by its slot. An interval after a gap
/// has the average over the gap.
pub(super) fn rates(points: &[Point]) -> Vec<(i64, f64)> {
    points
        .windows(2)
        .map(|pair| {
            let seconds = (pair[1].slot - pair[0].slot).max(1) * POINT_SECONDS;
            // The total restarts if the relay was forgotten and created again.
            let events = (pair[1].published - pair[0].published).max(0);
            (pair[1].slot, events as f64 / seconds as f64)
        })
        .collect()
}

fn larger(left: Option<f64>, right: Option<f64>) -> Option<f64> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.max(right)),
        (left, right) => left.or(right),
    }
}

/// Reads the database until `shutdown` is cancelled.
pub(super) async fn run(source: Arc<Source>, shutdown: CancellationToken) {
    loop {
        let began = Instant::now();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sample(&source) => {}
        }
        let next = |every| sleep_until(began + every);
        let is_watched = source.samples.receiver_count() > 0;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = next(if is_watched { WATCHED_EVERY } else { IDLE_EVERY }) => {}
            () = source.opened.notified(), if !is_watched => {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = next(WATCHED_EVERY) => {}
                }
            }
        }
    }
}

/// Reads the state once and publishes it.
async fn sample(source: &Source) {
    let reading = timeout(SAMPLE_TIMEOUT, read(source)).await;
    let reading = reading.unwrap_or_else(|_| {
        let seconds = SAMPLE_TIMEOUT.as_secs();
        Err(ConsoleError::new(format!("no response within {seconds} s")))
    });
    match reading {
        Ok(reading) => {
            source
                .history
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(&reading);
            source.samples.send_replace(Sample {
                read: Some(Arc::new(reading)),
                error: None,
            });
        }
        Err(error) => {
            let failed_before = source.samples.borrow().error.is_some();
            if !failed_before {
                tracing::warn!(database = source.label, %error, "cannot read the database");
            }
            source
                .samples
                .send_modify(|sample| sample.error = Some(error));
        }
    }
}

async fn read(source: &Source) -> Result<Reading, ConsoleError> {
    let database = source.database().await?;
    let status = Status::read_counting(&database, COUNTED_MAX).await?;
    let subscribers = parked_topics(&database).await?;
    Ok(Reading {
        at: Utc::now(),
        status,
        subscribers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(slot: i64, published: i64) -> Point {
        Point {
            slot,
            published,
            lag_events: None,
            lag_seconds: None,
        }
    }

    #[test]
    fn throughput_is_the_difference_of_totals_and_never_negative() {
        let points = [point(1, 100), point(2, 150), point(5, 450), point(6, 0)];
        assert_eq!(rates(&points), [(2, 5.0), (5, 10.0), (6, 0.0)]);
        assert_eq!(rates(&points[..1]), []);
    }

    #[test]
    fn the_larger_lag_of_an_interval_is_kept() {
        assert_eq!(larger(Some(1.0), Some(2.0)), Some(2.0));
        assert_eq!(larger(None, Some(2.0)), Some(2.0));
        assert_eq!(larger(None, None), None);
    }
}
