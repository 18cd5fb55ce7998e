//! Releases of the members' code. Each of the first releases adds an event type and a step of the
//! saga. All releases differ in their settings for failures.

use std::time::Duration;

use tidings::subscriber::{Escalation, Retry};

use super::events::{BOOKING_TYPES, FIRST_TYPES};

/// Later releases than this one change only settings.
const LAST_WITH_NEW_TYPES: u32 = (BOOKING_TYPES.len() - FIRST_TYPES) as u32;

/// Returns the number of booking types that a release handles.
pub(crate) fn types(release: u32) -> usize {
    FIRST_TYPES + release.min(LAST_WITH_NEW_TYPES) as usize
}

/// Returns the policy for attempts in place.
pub(crate) fn retry(release: u32) -> Retry {
    let least = Duration::from_millis(5 + 5 * u64::from(release % 4));
    Retry::exponential(2 + release % 3, least..8 * least)
}

/// Returns the escalation of an event that has used up its attempts. Successive releases rotate
/// through parking, retry topics and dead letters.
pub(crate) fn escalation(release: u32) -> Escalation {
    match release % 3 {
        0 => park(release),
        1 => Escalation::retry_topics(
            [300, 900].map(|delay| Duration::from_millis(delay + u64::from(release / 3 % 2) * 100)),
        ),
        _ => Escalation::DeadLetter,
    }
}

/// Returns an escalation that parks an event until its handler succeeds. The services of a saga use
/// it in each release, because a compensation must not overtake its command.
pub(crate) fn park(release: u32) -> Escalation {
    let least = Duration::from_millis(40 + 20 * u64::from(release % 3));
    Escalation::Park(Retry::exponential(10_000, least..4 * least))
}

#[test]
fn releases_differ_in_types_retries_and_escalation() {
    assert_eq!([0, 1, 2, 3, 9].map(types), [2, 3, 4, 5, 5]);
    assert_ne!(retry(0), retry(1));
    let escalations = [0, 1, 2].map(escalation);
    assert!(
        matches!(
            escalations,
            [
                Escalation::Park(_),
                Escalation::RetryTopics(_),
                Escalation::DeadLetter
            ]
        ),
        "{escalations:?}"
    );
    assert_ne!(escalation(1), escalation(4), "retry topics of other delays");
}
