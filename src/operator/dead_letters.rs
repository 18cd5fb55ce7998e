//! Decisions about dead letters: replay them to their subscriber, or discard them.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

use super::OperatorError;
use crate::kafka::Settings;
use crate::subscriber::Bus;
use crate::subscriber::failure::redrive::{
    DeadLetter, DeadLetterBox, Filter, REPLAYS_MAX, TargetError,
};

/// Decision about dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetterDecision {
    Replay,
    Discard,
}

/// Letters after which the outcome of a replay is recorded. After a crash, at most these letters
/// are listed again.
const RECORDED_EVERY: usize = 100;

/// Reason why a letter is not replayed. Each text continues the name of the letter.
#[derive(Debug, thiserror::Error)]
enum KeptReason {
    #[error(
        "was replayed {0} times and failed each time: use `tidings dead-letters replay --again`"
    )]
    Replays(u32),
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// Outcome of a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LetterOutcome {
    /// Letters that were, or would be, replayed or discarded.
    pub(crate) done: i64,
    /// The letters that are kept, `partition/offset` with the reason.
    pub(crate) kept: Vec<(String, String)>,
    /// Selected letters that were not reached before the stop.
    pub(crate) left: i64,
}

/// Progress of a decision, and the way to stop it.
#[derive(Debug, Default)]
pub(crate) struct LetterProgress {
    /// Letters that were examined.
    pub(crate) examined: AtomicUsize,
    /// Selected letters. 0 until the topic was read.
    pub(crate) selected: AtomicUsize,
    /// Ends the decision after the current letter. The letters before it are recorded.
    pub(crate) stop: CancellationToken,
}

/// Counts the letters that [`decide_letters`] would replay or discard.
///
/// # Errors
///
/// Returns the cluster's error.
pub(crate) async fn count_letters(
    settings: &Settings,
    topic: &str,
    filter: Filter,
    decision: LetterDecision,
) -> Result<LetterOutcome, OperatorError> {
    let letters = read(settings, topic, filter).await?;
    let mut outcome = LetterOutcome::default();
    for letter in letters.letters() {
        match decision {
            LetterDecision::Discard => outcome.done += 1,
            LetterDecision::Replay => match target(letter) {
                Ok(_) => outcome.done += 1,
                Err(reason) => outcome.kept.push((name(letter), reason.to_string())),
            },
        }
    }
    Ok(outcome)
}

/// Replays or discards the letters of a topic that `filter` selects, until `progress.stop` is
/// cancelled.
///
/// # Errors
///
/// Returns the cluster's error. The letters before the error are replayed and recorded as such.
///
/// # Cancel safety
///
/// If the future is dropped, up to [`RECORDED_EVERY`] letters are replayed without being recorded,
/// so they are listed again. `progress.stop` ends it without this loss.
pub(crate) async fn decide_letters(
    settings: &Settings,
    topic: &str,
    filter: Filter,
    decision: LetterDecision,
    progress: &LetterProgress,
) -> Result<LetterOutcome, OperatorError> {
    let mut letters = read(settings, topic, filter).await?;
    let bus = Bus::new(settings.clone());
    let (mut outcome, mut failed, mut unrecorded) = (LetterOutcome::default(), None, 0);
    let count = letters.letters().len();
    progress.selected.store(count, Ordering::Relaxed);
    for at in 0..count {
        if progress.stop.is_cancelled() {
            outcome.left = i64::try_from(count - at).unwrap_or(i64::MAX);
            break;
        }
        if unrecorded == RECORDED_EVERY {
            record(&letters, outcome.done).await?;
            unrecorded = 0;
        }
        let letter = letters.letters().nth(at).expect("within the letters");
        let name = name(letter);
        match decision {
            LetterDecision::Discard => letters.discard(at),
            LetterDecision::Replay => match target(letter) {
                Ok(target) => {
                    if let Err(error) = letters.replay(&bus, at, target).await {
                        failed = Some((name, error));
                        break;
                    }
                    unrecorded += 1;
                }
                Err(reason) => {
                    outcome.kept.push((name, reason.to_string()));
                    progress.examined.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            },
        }
        outcome.done += 1;
        progress.examined.fetch_add(1, Ordering::Relaxed);
    }
    record(&letters, outcome.done).await?;
    match failed {
        None => Ok(outcome),
        Some((name, error)) => Err(OperatorError::Refused(format!(
            "letter {name} cannot be replayed: {error}; {} before it were replayed",
            outcome.done
        ))),
    }
}

async fn read(
    settings: &Settings,
    topic: &str,
    filter: Filter,
) -> Result<DeadLetterBox, OperatorError> {
    DeadLetterBox::read(settings, topic, filter)
        .await
        .map_err(|error| OperatorError::Refused(error.to_string()))
}

/// Records the letters that were replayed or discarded.
async fn record(letters: &DeadLetterBox, done: i64) -> Result<(), OperatorError> {
    letters.commit().await.map_err(|reason| {
        OperatorError::Refused(format!(
            "the outcome of {done} letters cannot be recorded, so some are listed again: {reason}"
        ))
    })
}

/// Returns the topic for a replay of a letter.
fn target(letter: &DeadLetter) -> Result<String, KeptReason> {
    if letter.replays >= REPLAYS_MAX {
        return Err(KeptReason::Replays(letter.replays));
    }
    Ok(letter.target(None)?)
}

fn name(letter: &DeadLetter) -> String {
    format!("{}/{}", letter.record.partition, letter.record.offset)
}
