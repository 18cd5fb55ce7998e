//! Comparison of the committed and the delivered events.

use std::collections::BTreeMap;
use std::io::{Write as _, stdout};

use super::{Failure, OrderChanged};

/// Each version of every order must arrive exactly once and in order, from 1 to the one in the
/// table.
pub(crate) fn print(
    truth: &[(i64, i64)],
    delivered: &[(OrderChanged, f64)],
    seconds: f64,
) -> Result<(), Failure> {
    let mut versions: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    delivered.iter().for_each(|(event, _)| {
        versions
            .entry(event.order_id)
            .or_default()
            .push(event.version)
    });
    let (mut lost, mut repeated, mut misordered) = (0, 0, 0);
    for (order, version) in truth {
        let seen = versions.remove(order).unwrap_or_default();
        let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
        lost += *version as usize - distinct.len();
        repeated += seen.len() - distinct.len();
        misordered += seen.windows(2).filter(|pair| pair[1] < pair[0]).count();
    }
    // The first half includes the time to join the group and to create the topic.
    let mut latencies: Vec<f64> = delivered[delivered.len() / 2..]
        .iter()
        .map(|(_, latency)| *latency)
        .collect();
    latencies.sort_by(f64::total_cmp);
    let (p50, p99) = (
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
    );
    let committed: i64 = truth.iter().map(|(_, version)| version).sum();
    let mut out = stdout();
    writeln!(
        out,
        "committed     {committed:>8}\ndelivered     {:>8}\n\
         lost          {lost:>8}\nrepeated      {repeated:>8}",
        delivered.len()
    )?;
    writeln!(
        out,
        "out of order  {misordered:>8}\nevents/s      {:>8.0}",
        committed as f64 / seconds
    )?;
    writeln!(
        out,
        "latency       {p50:>8.1} ms p50, {p99:.1} ms p99 (insert to consumer, second half)"
    )?;
    if lost + repeated + misordered == 0 {
        Ok(())
    } else {
        Err("the guarantees do not hold".into())
    }
}
