//! Numbers, sizes and times as text.

use chrono::{DateTime, Utc};

/// Formats a number as `1,234,567`.
pub(crate) fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    format!("{}{}", if number < 0 { "-" } else { "" }, groups.join(","))
}

/// Formats a number of things as `1 event` or `1,200 events`.
pub(crate) fn counted(number: i64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(number))
}

/// Formats a size as `16.0 MiB`.
pub(crate) fn size(bytes: i64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount.abs() < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{amount:.1} {unit}")
            };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} TiB")
}

/// Formats a point in time as `2026-01-02 03:04:05Z`.
pub(crate) fn utc(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Formats a duration as `0.3 s`, `4 min 10 s` or `3 h 2 min`.
pub(crate) fn time(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{:.1} s", seconds.max(0.0)),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567, -1_000].map(grouped),
            ["0", "999", "1,000", "1,234,567", "-1,000"]
        );
        assert_eq!(
            [0, 1, 1_200].map(|number| counted(number, "event")),
            ["0 events", "1 event", "1,200 events"]
        );
        assert_eq!(
            [0, 1_023, 1_536, 16 << 20, 5 << 40].map(size),
            ["0 B", "1023 B", "1.5 KiB", "16.0 MiB", "5.0 TiB"]
        );
        assert_eq!(
            [0.0, 0.34, 250.0, 10_920.0].map(time),
            ["0.0 s", "0.3 s", "4 min 10 s", "3 h 2 min"]
        );
    }
}
