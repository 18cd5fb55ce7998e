//! `tidings relay rewind`, `adopt` and `skip`.

use std::process::ExitCode;

use super::{failure, session};
use crate::{
    cli::{
        args::{AdoptArgs, RewindArgs, SkipArgs},
        config::Config,
        confirm::Confirm,
        exit::{DONE, Failure},
        output,
    },
    inspect::units::grouped,
    operator::{Move, Moved, move_relay},
};

/// Makes a relay publish events again.
pub(super) async fn rewind(config: &Config, args: &RewindArgs) -> Result<ExitCode, Failure> {
    let to = match args.since {
        Some(time) => Move::RewindSince(time),
        None if args.all => Move::RewindAll,
        None => Move::RewindToMirror,
    };
    run(config, to, args.dry_run, args.confirm).await
}

/// Makes a relay continue in a database that replaces another one.
pub(super) async fn adopt(config: &Config, args: &AdoptArgs) -> Result<ExitCode, Failure> {
    run(config, Move::Adopt, args.dry_run, args.confirm).await
}

/// Makes a relay skip events.
pub(super) async fn skip(config: &Config, args: &SkipArgs) -> Result<ExitCode, Failure> {
    run(
        config,
        args.event.map_or(Move::SkipAll, Move::SkipEvent),
        args.dry_run,
        args.confirm,
    )
    .await
}

async fn run(
    config: &Config,
    to: Move,
    dry_run: bool,
    confirm: Confirm,
) -> Result<ExitCode, Failure> {
    let foreign = config
        .debezium
        .as_ref()
        .map(|outbox| format!("{}.{}", outbox.schema, outbox.table));
    if let Some(table) = &foreign
        && matches!(to, Move::RewindSince(_) | Move::SkipEvent(_) | Move::Adopt)
    {
        return Err(Failure::Refused(format!(
            "relay {0} reads table {table}, whose rows do not record their transactions, \
             so it can only be moved with --all",
            config.name
        )));
    }
    let mut session = session(config, "relay move").await?;
    if !dry_run && confirm.must_ask() {
        // The lease is free again while the operator reads.
        let planned = move_relay(&mut session, &config.schema, &config.name, to, true)
            .await
            .map_err(|error| failure(config, error))?;
        let effect = effect(&config.name, foreign.as_deref(), to, &planned);
        confirm.ask(&effect).await?;
    }
    let moved = move_relay(&mut session, &config.schema, &config.name, to, dry_run)
        .await
        .map_err(|error| failure(config, error))?;
    let effect = effect(&config.name, foreign.as_deref(), to, &moved);
    output::lines(&format!("{effect}  -> {}\n", end(dry_run)));
    Ok(ExitCode::from(DONE))
}

/// Formats the effect of a move: a line, and another one if it is not complete.
fn effect(name: &str, foreign: Option<&str>, to: Move, moved: &Moved) -> String {
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
        // `moved` counts rows of the schema's outbox, not of a Debezium table.
        (Move::RewindAll, _) if foreign.is_some() => {
            format!("every row in {table} will be published again")
        }
        (Move::SkipAll, _) if foreign.is_some() => {
            format!("all rows now in {table} will be skipped")
        }
        (Move::Adopt, _) => "continues after the last event that was published from the other \
                             database; no event is repeated or skipped"
            .to_owned(),
        (Move::SkipAll, true) => "all events now in the outbox will be skipped".to_owned(),
        (_, true) => format!(
            "{} events will be published as if for the first time, because the relay's position \
             belongs to another database",
            count(moved.repeats)
        ),
        (Move::RewindToMirror, _) => {
            "continues from the position in the database: events that it published in its last \
             second may be repeated, and earlier events that Kafka has lost stay lost"
                .to_owned()
        }
        (Move::SkipEvent(id), _) if moved.skips == 0 => {
            format!("according to the database, event {id} is already published")
        }
        _ => format!(
            "{} events will be published again, {} unpublished events will be skipped",
            count(moved.repeats),
            count(moved.skips)
        ),
    };
    let gone = if moved.some_are_gone && foreign.is_none() {
        "retention has deleted older events, which cannot be published again\n"
    } else {
        ""
    };
    format!("{name}: {effect}\n{gone}")
}

fn end(dry_run: bool) -> &'static str {
    match dry_run {
        true => "dry run: nothing was changed",
        false => "takes effect at the relay's next start",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effect_of_a_move_is_stated_in_numbers() {
        let moved = Moved {
            repeats: 1_200,
            skips: 3,
            is_lower_bound: false,
            elsewhere: false,
            some_are_gone: true,
        };
        let stated = effect("orders", None, Move::RewindAll, &moved);
        assert!(
            stated.starts_with("orders: 1,200 events will be published again, 3 unpublished"),
            "{stated}"
        );
        assert!(
            stated.contains("retention has deleted older events"),
            "{stated}"
        );
        let bounded = Moved {
            is_lower_bound: true,
            some_are_gone: false,
            ..moved.clone()
        };
        let stated = effect("orders", None, Move::SkipAll, &bounded);
        assert!(stated.contains("at least 3 unpublished"), "{stated}");
        let uncounted = Moved {
            repeats: 0,
            skips: 0,
            ..moved
        };
        let table = Some("public.outboxevent");
        let stated = effect("orders", table, Move::RewindAll, &uncounted);
        assert!(
            stated.contains("every row in public.outboxevent") && !stated.contains("retention"),
            "{stated}"
        );
    }
}
