//! `tidings relay rewind` and `skip`.

use std::process::ExitCode;

use super::{failure, session};
use crate::{
    cli::{
        args::{AdoptArgs, RewindArgs, SkipArgs},
        config::Config,
        exit::{DONE, Failure},
        output,
        table::grouped,
    },
    operator::{Move, Moved, move_relay},
};

/// Has events published once more.
pub(super) async fn rewind(config: &Config, args: &RewindArgs) -> Result<ExitCode, Failure> {
    let to = match args.since {
        Some(time) => Move::RewindSince(time),
        None if args.all => Move::RewindAll,
        None => Move::RewindToMirror,
    };
    run(config, to, args.dry_run).await
}

/// Has the relay continue in the database that replaces another one.
pub(super) async fn adopt(config: &Config, args: &AdoptArgs) -> Result<ExitCode, Failure> {
    run(config, Move::Adopt, args.dry_run).await
}

/// Has events left out.
pub(super) async fn skip(config: &Config, args: &SkipArgs) -> Result<ExitCode, Failure> {
    run(
        config,
        args.event.map_or(Move::SkipAll, Move::SkipEvent),
        args.dry_run,
    )
    .await
}

async fn run(config: &Config, to: Move, dry_run: bool) -> Result<ExitCode, Failure> {
    let foreign = config
        .debezium
        .as_ref()
        .map(|outbox| format!("{}.{}", outbox.schema, outbox.table));
    if let Some(table) = &foreign
        && matches!(to, Move::RewindSince(_) | Move::SkipEvent(_) | Move::Adopt)
    {
        return Err(Failure::Refused(format!(
            "nothing in table {table} says which transaction wrote what, so a relay that reads it is moved by --all alone"
        )));
    }
    let mut session = session(config, "relay move").await?;
    let moved = move_relay(&mut session, &config.schema, &config.name, to, dry_run)
        .await
        .map_err(|error| failure(config, error))?;
    output::lines(&text(&config.name, foreign.as_deref(), to, moved, dry_run));
    Ok(ExitCode::from(DONE))
}

fn text(name: &str, foreign: Option<&str>, to: Move, moved: Moved, dry_run: bool) -> String {
    let count = |events: i64| {
        format!(
            "{}{}",
            if moved.is_lower_bound {
                "at least "
            } else {
                ""
            },
            grouped(events)
        )
    };
    let table = foreign.unwrap_or("the outbox");
    let effect = match (to, moved.elsewhere) {
        // What was counted are the rows of the outbox.
        (Move::RewindAll, _) if foreign.is_some() => format!("every row that {table} holds is published once more"),
        (Move::SkipAll, _) if foreign.is_some() => format!("what {table} holds now is left out"),
        (Move::Adopt, _) => "continues after the last event that was published from the other database: nothing repeats, nothing is left out".to_owned(),
        (Move::SkipAll, true) => "everything that the outbox holds now is left out".to_owned(),
        (_, true) => format!(
            "{} events are published, as if for the first time: the relay's position is one in another database and says nothing of them",
            count(moved.repeats)
        ),
        (Move::RewindToMirror, _) => {
            "goes on from the position that the database has: what it had published in its last second may repeat, and what Kafka has lost of earlier events stays lost".to_owned()
        }
        (Move::SkipEvent(id), _) if moved.skips == 0 => format!("event {id} is published already, as far as the database knows"),
        _ => format!("{} events are published once more, {} that are not published are left out", count(moved.repeats), count(moved.skips)),
    };
    let gone = if moved.some_are_gone && foreign.is_none() {
        "retention has deleted older events: those are gone from the outbox and are not published\n"
    } else {
        ""
    };
    let end = if dry_run {
        "nothing is changed: this was a dry run"
    } else {
        "it holds from the relay's next start on"
    };
    format!("{name}: {effect}\n{gone}  -> {end}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_move_does_is_said_in_numbers() {
        let moved = Moved {
            repeats: 1_200,
            skips: 3,
            is_lower_bound: false,
            elsewhere: false,
            some_are_gone: true,
        };
        let said = text("orders", None, Move::RewindAll, moved.clone(), true);
        assert!(
            said.starts_with("orders: 1,200 events are published once more, 3 that"),
            "{said}"
        );
        assert!(
            said.contains("retention has deleted older events") && said.contains("dry run"),
            "{said}"
        );
        let said = text(
            "orders",
            None,
            Move::SkipAll,
            Moved {
                is_lower_bound: true,
                some_are_gone: false,
                ..moved
            },
            false,
        );
        assert!(
            said.contains("at least 3 that") && said.contains("next start"),
            "{said}"
        );
        let moved = Moved {
            repeats: 0,
            skips: 0,
            is_lower_bound: false,
            elsewhere: false,
            some_are_gone: true,
        };
        let said = text(
            "orders",
            Some("public.outboxevent"),
            Move::RewindAll,
            moved,
            false,
        );
        assert!(
            said.contains("every row that public.outboxevent holds") && !said.contains("retention"),
            "{said}"
        );
    }
}
