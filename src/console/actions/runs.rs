//! Actions that run, and the ones that ended last.
//!
//! An action is a task of the console rather than a part of its request: a browser that closes its
//! connection, and the time limit of a connection, end the request alone. The shutdown of the
//! console stops a replay after the current letter, and waits until its outcome is recorded.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::execution::Affected;
use super::operation::Operation;
use crate::console::error::ConsoleError;
use crate::console::layout::text;
use crate::console::view::View;
use crate::operator::LetterProgress;
use crate::task::OwnedTask;

/// Actions that run at the same time. More of them are a mistake or an attack.
const RUNNING_MAX: usize = 8;

/// Actions that are listed.
const LISTED_MAX: usize = 50;

/// Time after which an action is stopped, so that an unreachable cluster does not keep it forever.
/// A replay of the maximum number of letters takes less than a minute.
const TIME_MAX: Duration = Duration::from_secs(1_800);

/// Time for running actions to stop at shutdown. A relay has 20 s to end as a whole.
const END_TIMEOUT: Duration = Duration::from_secs(8);

/// All actions of this process.
#[derive(Debug)]
pub(in crate::console) struct Runs {
    latest_first: Mutex<VecDeque<Arc<Run>>>,
    tasks: Mutex<JoinSet<()>>,
    /// One decision about letters at a time, so that two of them never replay the same letter. It
    /// is separate from the permits of pages, which continue meanwhile.
    pub(super) letters: Semaphore,
    stop: CancellationToken,
}

/// One action.
#[derive(Debug)]
pub(in crate::console) struct Run {
    pub(in crate::console) operation: Operation,
    pub(in crate::console) user: String,
    pub(in crate::console) database: String,
    pub(in crate::console) started_at: DateTime<Utc>,
    progress: LetterProgress,
    state: watch::Sender<RunState>,
}

/// State of an action.
#[derive(Clone, Debug)]
pub(in crate::console) enum RunState {
    Running,
    Done(Affected),
    Failed(ConsoleError),
}

impl Runs {
    /// Creates an empty list. Actions stop when `shutdown` is cancelled.
    pub(in crate::console) fn new(shutdown: CancellationToken) -> Self {
        Self {
            latest_first: Mutex::default(),
            tasks: Mutex::default(),
            letters: Semaphore::new(1),
            stop: shutdown,
        }
    }

    /// Starts an action. Returns `None` if too many run already, or if the console ends.
    pub(super) fn start(&self, view: View, operation: Operation) -> Option<Arc<Run>> {
        let mut tasks = locked(&self.tasks);
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= RUNNING_MAX || self.stop.is_cancelled() {
            return None;
        }
        let run = Arc::new(Run {
            operation,
            user: view.user.name().to_owned(),
            database: view.source().label.clone(),
            started_at: Utc::now(),
            progress: LetterProgress {
                stop: self.stop.child_token(),
                ..LetterProgress::default()
            },
            state: watch::Sender::new(RunState::Running),
        });
        let mut latest_first = locked(&self.latest_first);
        latest_first.push_front(run.clone());
        forget_ended(&mut latest_first, |run| run.is_running());
        tasks.spawn(carried_out(run.clone(), view));
        Some(run)
    }

    /// Returns the actions of this process, the latest first.
    pub(in crate::console) fn latest_first(&self) -> Vec<Arc<Run>> {
        locked(&self.latest_first).iter().cloned().collect()
    }

    /// Waits for the running actions to stop, after shutdown.
    pub(in crate::console) async fn end(&self) {
        let mut tasks = std::mem::take(&mut *locked(&self.tasks));
        let ended = timeout(END_TIMEOUT, async {
            while tasks.join_next().await.is_some() {}
        });
        if ended.await.is_err() {
            tracing::warn!(
                actions = tasks.len(),
                "actions are abandoned because their server does not respond; letters that they \
                 replayed last may be listed again"
            );
        }
    }
}

impl Run {
    /// Returns the present state.
    pub(in crate::console) fn state(&self) -> RunState {
        self.state.borrow().clone()
    }

    fn is_running(&self) -> bool {
        matches!(*self.state.borrow(), RunState::Running)
    }

    /// Returns the number of examined and of selected letters, once the topic was read.
    pub(in crate::console) fn letters(&self) -> Option<(usize, usize)> {
        match self.progress.selected.load(Ordering::Relaxed) {
            0 => None,
            selected => Some((self.progress.examined.load(Ordering::Relaxed), selected)),
        }
    }

    /// Waits for the end, up to `limit`. Returns the state at that time.
    pub(super) async fn ended_within(&self, limit: Duration) -> RunState {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| !matches!(state, RunState::Running));
        let _ = timeout(limit, ended).await;
        self.state()
    }
}

/// Removes the oldest actions beyond [`LISTED_MAX`]. An action that still runs stays, so that its
/// progress is visible to its end. [`RUNNING_MAX`] limits their number.
fn forget_ended<T>(latest_first: &mut VecDeque<T>, is_running: impl Fn(&T) -> bool) {
    let mut excess = latest_first.len().saturating_sub(LISTED_MAX);
    for at in (0..latest_first.len()).rev() {
        if excess == 0 {
            return;
        }
        if !is_running(&latest_first[at]) {
            latest_first.remove(at);
            excess -= 1;
        }
    }
}

/// Carries an action out, and logs and publishes its outcome.
async fn carried_out(run: Arc<Run>, view: View) {
    let task = OwnedTask::spawn({
        let run = run.clone();
        async move { bounded(&run, &view).await }
    });
    let outcome = task
        .await
        .unwrap_or_else(|_| Err(ConsoleError::new("it failed; the log has the reason")));
    let (user, database) = (text(&run.user), &run.database);
    let action = &run.operation;
    match outcome {
        Ok(affected) => {
            let Affected {
                events, kept, left, ..
            } = affected;
            tracing::info!(user, %database, %action, events, kept, left, "console action");
            for (name, reason) in &affected.kept_first {
                tracing::info!(letter = name, reason = text(reason), "the letter is kept");
            }
            run.state.send_replace(RunState::Done(affected));
        }
        Err(error) => {
            tracing::warn!(user, %database, %action, %error, "console action failed");
            run.state.send_replace(RunState::Failed(error));
        }
    }
}

/// Carries an action out. After the time limit, it is stopped where it loses nothing.
async fn bounded(run: &Run, view: &View) -> Result<Affected, ConsoleError> {
    let mut acting = pin!(run.operation.carry_out(view, &run.progress));
    tokio::select! {
        outcome = &mut acting => return outcome,
        () = sleep(TIME_MAX) => run.progress.stop.cancel(),
    }
    acting.await
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_that_runs_stays_in_the_list_however_many_end_after_it() {
        // The numbers are those of the actions, and the first one runs.
        let mut latest_first = VecDeque::new();
        for number in 0..3 * LISTED_MAX {
            latest_first.push_front(number);
            forget_ended(&mut latest_first, |number| *number == 0);
        }
        assert_eq!(latest_first.len(), LISTED_MAX);
        assert_eq!(latest_first.back(), Some(&0));
        assert_eq!(latest_first.front(), Some(&(3 * LISTED_MAX - 1)));
        let mut running: VecDeque<_> = (0..LISTED_MAX + 3).collect();
        forget_ended(&mut running, |_| true);
        assert_eq!(
            running.len(),
            LISTED_MAX + 3,
            "no running action is removed"
        );
    }
}
