//! Reports as text.

use super::super::table::{Align, aligned, list};
use crate::inspect::proof::{Finding, Gap, GapReason, Kind, Report, Tally};
use crate::inspect::units::{grouped, utc};

/// Formats a report.
pub(in crate::cli) fn report(report: &Report) -> String {
    let mut out = format!(
        "relay {}, snapshot of {}, {:.1} s\n\n",
        report.relay,
        utc(report.snapshot_at),
        report.seconds
    );
    if let Some(since) = report.since {
        out = format!("events since {}\n", utc(since)) + &out;
    }
    out.push_str(&counts(report));
    out.push_str(&findings(&report.findings));
    out.push_str(&gaps(&report.gaps));
    out.push('\n');
    out.push_str(&verdict(report));
    out
}

/// Formats a round of `--follow`: one line, and its findings.
pub(super) fn round(report: &Report) -> String {
    let tally = &report.tally;
    let mut out = format!(
        "verified until {}: {} events, {} waiting, {} wrong, {} not verified\n",
        utc(report.verified_until),
        grouped(tally.committed.cast_signed()),
        grouped((tally.waiting + tally.ahead).cast_signed()),
        tally.wrong(),
        tally.unverified(),
    );
    if !report.findings.is_empty() {
        out.push_str(findings(&report.findings).trim_start());
    }
    out
}

/// A line of the report: its name, its count and an explanation.
type Line = (&'static str, fn(&Tally) -> u64, &'static str);

/// Lines that are always shown.
const ALWAYS: &[Line] = &[
    ("committed", |t| t.committed, "events in the outbox"),
    (
        "delivered",
        |t| t.delivered,
        "published and found in the topics",
    ),
];

/// Lines that are shown if their count is not zero.
const SOMETIMES: &[Line] = &[
    ("waiting", |t| t.waiting, "not published yet"),
    (
        "ahead",
        |t| t.ahead,
        "published since the position was stored",
    ),
    ("scheduled", |t| t.scheduled, "not due yet"),
    ("parked", |t| t.parked, "see `tidings parked list`"),
    (
        "dead letters",
        |t| t.dead_lettered,
        "in a dead letter topic of the relay",
    ),
    ("discarded", |t| t.discarded, "by `tidings parked discard`"),
    (
        "skipped",
        |t| t.skipped,
        "by `tidings relay skip` or another move",
    ),
    (
        "sent again",
        |t| t.repeated_on_purpose,
        "by `tidings relay rewind` or another relay",
    ),
    (
        "sent again",
        |t| t.repeated_at_least_once,
        "as delivery at least once allows",
    ),
    (
        "in commit order",
        |t| t.in_commit_order,
        "not in the order of inserts, and right",
    ),
    ("other records", |t| t.foreign, "of other sources"),
    ("outside", |t| t.outside, "records of newer or older events"),
    (
        "without row",
        |t| t.without_row,
        "records whose row retention has deleted",
    ),
    (
        "trimmed",
        |t| t.trimmed,
        "events whose record Kafka may have deleted",
    ),
    (
        "compacted",
        |t| t.compacted,
        "events of compacted topics without a record",
    ),
    (
        "without topic",
        |t| t.without_topic,
        "events whose topic may have been deleted",
    ),
    (
        "hidden",
        |t| t.hidden,
        "events behind a transaction that does not end",
    ),
    (
        "not visible",
        |t| t.not_visible,
        "records of transactions that do not end",
    ),
    (
        "order undecided",
        |t| t.order_undecided,
        "not in the order of inserts",
    ),
];

/// Lines of faults.
const WRONG: &[Line] = &[
    (
        "lost",
        |t| t.lost,
        "published according to the position, without a record",
    ),
    ("repeated", |t| t.repeated, "additional records"),
    (
        "reordered",
        |t| t.reordered,
        "behind a later event of the aggregate",
    ),
    (
        "never committed",
        |t| t.never_committed,
        "records without a row",
    ),
];

/// Formats the counts.
fn counts(report: &Report) -> String {
    let sometimes = SOMETIMES
        .iter()
        .filter(|(_, count, _)| count(&report.tally) > 0);
    let lines = ALWAYS.iter().chain(sometimes).chain(WRONG);
    let row = |(name, count, text): &Line| {
        let count = grouped(count(&report.tally).cast_signed());
        vec![
            format!("{name:<16}"),
            format!("{count:>13}"),
            (*text).to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = lines.map(row).collect();
    aligned(&[Align::Left, Align::Right, Align::Left], &rows)
}

fn findings(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let mut rows = vec![
        ["finding", "event", "aggregate", "type", "record", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(findings.iter().map(finding));
    let columns = [
        Align::Status,
        Align::Left,
        Align::Left,
        Align::Left,
        Align::Left,
        Align::Text,
    ];
    format!("\n{}", list(&columns, &rows))
}

fn finding(finding: &Finding) -> Vec<String> {
    let kind = match finding.kind {
        Kind::Lost => "lost",
        Kind::Repeated => "repeated",
        Kind::Reordered => "reordered",
        Kind::NeverCommitted => "never committed",
        Kind::OrderUndecided => "order undecided",
    };
    let dash = || "-".to_owned();
    let place = match (&finding.topic, finding.partition, finding.offset) {
        (Some(topic), Some(partition), Some(offset)) => format!("{topic}/{partition}/{offset}"),
        (Some(topic), Some(partition), None) => format!("{topic}/{partition}"),
        _ => dash(),
    };
    let note = match (finding.copies, finding.behind) {
        (Some(copies), _) => format!("{copies} records"),
        (None, Some(behind)) => format!("behind {behind}"),
        (None, None) => String::new(),
    };
    vec![
        kind.to_owned(),
        finding.event.to_string(),
        finding.aggregate.clone().unwrap_or_else(dash),
        finding.event_type.clone().unwrap_or_else(dash),
        place,
        note,
    ]
}

/// Maximum number of gaps that are listed.
const GAPS_MAX: usize = 20;

fn gaps(gaps: &[Gap]) -> String {
    if gaps.is_empty() {
        return String::new();
    }
    let mut out = String::from("\n");
    for gap in gaps.iter().take(GAPS_MAX) {
        let place = match gap.partition {
            Some(partition) => format!("{}/{partition}", gap.topic),
            None => gap.topic.to_string(),
        };
        let text = match gap.reason {
            GapReason::Trimmed => format!(
                "starts at offset {}: Kafka has deleted earlier records",
                gap.first_offset.unwrap_or_default()
            ),
            GapReason::Compacted => "is compacted: only the last record of a key is kept".into(),
            GapReason::Missing => "does not exist".into(),
            GapReason::OpenTransaction => "has a transaction that does not end".into(),
        };
        let place = super::super::escape::escaped(&place).into_owned();
        out.push_str(&format!("{place} {text}\n"));
    }
    if gaps.len() > GAPS_MAX {
        out.push_str(&format!("and {} more (--json)\n", gaps.len() - GAPS_MAX));
    }
    out
}

fn verdict(report: &Report) -> String {
    let tally = &report.tally;
    let unverified = match tally.unverified() {
        0 => String::new(),
        count => format!("; {} could not be verified", grouped(count.cast_signed())),
    };
    let undecided = match tally.order_undecided {
        0 => String::new(),
        count => format!(
            "\nthe order of {} is undecided -> set track_commit_timestamp = on, or pass \
             --writers-lock if every writer locks the aggregate first",
            grouped(count.cast_signed())
        ),
    };
    match report.matches {
        true => format!("the topics match the outbox{unverified}{undecided}\n"),
        false => format!("THE TOPICS DIFFER FROM THE OUTBOX{unverified}{undecided}\n"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    pub(in crate::cli::verify) fn report_with(change: impl FnOnce(&mut Tally)) -> Report {
        let mut tally = Tally {
            committed: 1_000,
            records: 998,
            delivered: 998,
            waiting: 2,
            ..Tally::default()
        };
        change(&mut tally);
        let time = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        Report {
            relay: "tidings".into(),
            snapshot_at: time,
            verified_until: time,
            since: None,
            matches: tally.wrong() == 0,
            tally,
            findings: Vec::new(),
            gaps: Vec::new(),
            seconds: 1.25,
        }
    }

    #[test]
    fn a_report_shows_the_verdict_and_only_counts_that_matter() {
        let text = report(&report_with(|_| ()));
        assert!(
            text.contains("committed                 1,000  events"),
            "{text}"
        );
        assert!(text.contains("lost                          0  "), "{text}");
        assert!(!text.contains("trimmed"), "{text}");
        assert!(text.ends_with("\nthe topics match the outbox\n"), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
    }

    #[test]
    fn a_finding_is_named_with_its_place_and_hostile_text_is_escaped() {
        let mut wrong = report_with(|tally| tally.repeated = 1);
        wrong.findings.push(Finding {
            kind: Kind::Repeated,
            event: Uuid::nil(),
            aggregate: Some("order/7\u{1b}[2J".into()),
            event_type: Some("OrderPlaced".into()),
            topic: Some("order".into()),
            partition: Some(3),
            offset: Some(9),
            copies: Some(2),
            behind: None,
        });
        let text = report(&wrong);
        assert!(text.contains("order/3/9"), "{text}");
        assert!(text.contains("2 records"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(
            text.ends_with("THE TOPICS DIFFER FROM THE OUTBOX\n"),
            "{text}"
        );
    }
}
