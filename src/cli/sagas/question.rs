//! Questions before decisions about sagas that cannot be undone.

use super::{AbortArgs, DisownArgs, UNFINISHED, unreadable};
use crate::cli::escape::escaped;
use crate::cli::exit::Failure;
use crate::inspect::units::{counted, grouped};
use crate::saga::Sagas;

/// Number of sagas that a question counts.
const COUNTED_MAX: u32 = 1_000;

/// Number of sagas that a question names.
const NAMED_MAX: usize = 20;

/// Asks for confirmation with the state of each saga.
pub(super) async fn confirm_abort(sagas: &Sagas, args: &AbortArgs) -> Result<(), Failure> {
    let ids = &args.decide.sagas;
    if !args.confirm.must_ask() {
        return Ok(());
    }
    let mut effect = format!(
        "{} will be {}\n",
        counted(ids.len() as i64, "saga"),
        match args.force {
            true => "ended as failed, without compensation of the completed steps",
            false => "aborted: the completed steps are compensated",
        }
    );
    for id in ids.iter().take(NAMED_MAX) {
        let run = sagas.get(*id).await.map_err(|error| unreadable(&error))?;
        effect.push_str(&match run {
            Some(run) => format!(
                "  {id}  {} {}, {}\n",
                escaped(&run.name),
                escaped(&run.key),
                run.status.word()
            ),
            None => format!("  {id}  does not exist\n"),
        });
    }
    let more = ids.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        effect.push_str(&format!("  and {more} more\n"));
    }
    args.confirm.ask(&effect).await
}

/// Asks for confirmation with the number of sagas that the subscriber has not finished.
pub(super) async fn confirm_disown(sagas: &Sagas, args: &DisownArgs) -> Result<(), Failure> {
    let DisownArgs {
        saga,
        subscriber,
        confirm,
    } = args;
    if !confirm.must_ask() {
        return Ok(());
    }
    let unfinished = sagas
        .list(Some(saga), &UNFINISHED, COUNTED_MAX)
        .await
        .map_err(|error| unreadable(&error))?;
    let more = match unfinished.len() as u32 {
        COUNTED_MAX => "at least ",
        _ => "",
    };
    let effect = format!(
        "{subscriber} will no longer claim {saga}, of which {more}{} not finished: the next \
         subscriber that starts with this saga runs them",
        match unfinished.len() {
            1 => "1 saga is".to_owned(),
            count => format!("{} sagas are", grouped(count as i64)),
        }
    );
    confirm.ask(&effect).await
}
