//! Comparison of the committed and the delivered events.

use std::io::{Write as _, stdout};

use tidings::verification::{HistoryEvent, HistoryRecord, compare_history};
use uuid::Uuid;

use super::{Delivery, Failure};

/// Each version of every order must arrive exactly once and in order, from 1 to the one in the
/// table. The comparison is that of `tidings verify`. The events come from the table of orders and
/// the records from a plain consumer, so the verdict does not depend on the relay's reports.
pub(crate) fn print(
    truth: &[(i64, i64)],
    delivered: &[Delivery],
    seconds: f64,
) -> Result<(), Failure> {
    let events = truth.iter().flat_map(|(order, last)| {
        (1..=*last).map(|version| HistoryEvent {
            id: id(*order, version),
            aggregate: order.cast_unsigned(),
            seq: version,
        })
    });
    let records = delivered.iter().map(|delivery| HistoryRecord {
        id: id(delivery.event.order_id, delivery.event.version),
        partition: delivery.partition,
        offset: delivery.offset,
    });
    let verdict = compare_history(events, records)?;
    // The first half includes the time to join the group and to create the topic.
    let second_half = &delivered[delivered.len() / 2..];
    let mut latencies: Vec<f64> = second_half.iter().map(|one| one.latency_ms).collect();
    latencies.sort_by(f64::total_cmp);
    let (p50, p99) = (
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
    );
    let committed: i64 = truth.iter().map(|(_, version)| version).sum();
    let counts = [
        ("committed", committed.cast_unsigned()),
        ("delivered", delivered.len() as u64),
        ("lost", verdict.lost),
        ("repeated", verdict.repeated),
        ("out of order", verdict.reordered),
        ("never committed", verdict.never_committed),
        ("events/s", (committed as f64 / seconds) as u64),
    ];
    let mut out = stdout();
    for (name, count) in counts {
        writeln!(out, "{name:<16}{count:>8}")?;
    }
    writeln!(
        out,
        "latency         {p50:>8.1} ms p50, {p99:.1} ms p99 (insert to consumer, second half)"
    )?;
    if verdict == Default::default() {
        Ok(())
    } else {
        Err("the guarantees do not hold".into())
    }
}

/// Returns the id of a version of an order.
fn id(order: i64, version: i64) -> Uuid {
    Uuid::from_u64_pair(order.cast_unsigned(), version.cast_unsigned())
}
