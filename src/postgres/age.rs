//! Time spans computed by Postgres, as the type of the standard library.

use std::time::Duration;

/// Converts seconds to a duration. A span that is negative, NaN, infinite or too large becomes
/// zero: its caller must not fail because of one row.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_seconds_is_a_duration() {
        for none in [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            -1.0,
            f64::MAX,
            1e20,
        ] {
            assert_eq!(seconds(none), Duration::ZERO, "{none}");
        }
        assert_eq!(seconds(1.5), Duration::from_millis(1_500));
        // The time since 4714 BC, the first year that Postgres supports.
        assert_eq!(seconds(2.13e11), Duration::from_secs(213_000_000_000));
    }
}
