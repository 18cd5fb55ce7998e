//! The log as the only source. Only the slot records which events are still to be published.

use std::convert::Infallible;

use super::{
    selector::SourceSelector,
    slot::{self, Kept},
};
use crate::{
    postgres::Lsn,
    relay::{
        DebeziumOutbox, ExistingRows,
        error::Interruption,
        pipeline::{Pipeline, Stop},
        position::{Position, Progress},
    },
};

/// The step before the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// None: the slot contains everything after the position.
    Stream,
    /// The operator has moved the position: the stream starts at the slot's confirmed position, and
    /// events before the position are skipped.
    StreamFrom(Lsn),
    /// A slot is created. The existing rows are published or skipped.
    Begin(ExistingRows),
    /// The slot exists, and everything before it is skipped.
    BeginAtSlot,
    /// The relay takes over from a connector.
    TakeOver,
    /// The log no longer contains all unpublished events.
    Refuse(Lost),
}

/// The reason why the log does not contain all unpublished events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Gone,
    Unreadable,
    /// The slot was advanced to this position by another client.
    Advanced(Lsn),
}

/// Decides by the slot, the position and the operator's settings.
fn first(kept: Kept, position: &Position, moved: bool, outbox: &DebeziumOutbox) -> First {
    let fresh = position.is_start();
    match kept {
        _ if fresh && outbox.hand_over.is_some() && !moved => First::TakeOver,
        // It is unknown which of the rows an interrupted start has published, so it starts again.
        _ if fresh && (moved || outbox.existing == ExistingRows::Publish) => {
            First::Begin(ExistingRows::Publish)
        }
        Kept::From(_) if fresh => First::BeginAtSlot,
        Kept::None | Kept::Unreadable if fresh || moved => First::Begin(ExistingRows::Leave),
        Kept::None => First::Refuse(Lost::Gone),
        Kept::Unreadable => First::Refuse(Lost::Unreadable),
        Kept::From(confirmed) if moved => First::StreamFrom(confirmed),
        Kept::From(confirmed) if position.resume_lsn < confirmed => {
            First::Refuse(Lost::Advanced(confirmed))
        }
        Kept::From(_) => First::Stream,
    }
}

impl SourceSelector<'_> {
    /// Publishes the events of the log.
    ///
    /// # Errors
    ///
    /// Returns [`Stop`] if the relay shuts down or the session is interrupted, for example because
    /// the log no longer contains all unpublished events.
    pub(super) async fn follow(
        &self,
        reason: &str,
        pipeline: &mut Pipeline,
    ) -> Result<Infallible, Stop> {
        let outbox = self
            .options
            .debezium
            .as_ref()
            .expect("only a Debezium outbox is read from the log alone");
        if !self.server.logical {
            return Err(Interruption::Refused(format!(
                "wal_level is `{}`, and {reason}: run ALTER SYSTEM SET wal_level = logical and \
                 restart Postgres (on a managed service, set rds.logical_replication, \
                 cloudsql.logical_decoding or the like)",
                self.server.wal_level
            ))
            .into());
        }
        let kept = match slot::kept(self.options, self.names, pipeline.connection()).await? {
            Kept::From(_) if self.log_unusable => Kept::Unreadable,
            kept => kept,
        };
        let position = pipeline.settled().clone();
        match first(kept, &position, self.moved, outbox) {
            First::Stream => {}
            First::StreamFrom(confirmed) => {
                *pipeline.progress() = Progress::new(Position {
                    resume_lsn: confirmed,
                    ..position
                });
            }
            First::Begin(existing) => self.begin(existing, pipeline).await?,
            First::BeginAtSlot => self.begin_at_slot(pipeline).await?,
            First::TakeOver => self.take_over(outbox, pipeline).await?,
            First::Refuse(lost) => return Err(self.lost(lost, reason, &position).into()),
        }
        self.stream(pipeline).await?;
        unreachable!("a stream of the log alone is not left for the table")
    }

    fn lost(&self, lost: Lost, reason: &str, position: &Position) -> Interruption {
        let (name, slot) = (&self.options.name, &self.names.slot);
        let (schema, table) = self.options.table();
        let what = match lost {
            Lost::Gone => format!("slot `{slot}` does not exist any more"),
            Lost::Unreadable => {
                format!(
                    "slot `{slot}` cannot be read any more (the server has removed log that it \
                     needs, or its publication was dropped)"
                )
            }
            Lost::Advanced(to) => format!(
                "slot `{slot}` is at {to}, beyond the position of the relay: another client has \
                 advanced it"
            ),
        };
        let drop = if lost == Lost::Gone {
            String::new()
        } else {
            format!("`select pg_drop_replication_slot('{slot}')`, then ")
        };
        Interruption::Refused(format!(
            "{what}, and {reason}. Events that were committed after {log} and were not published \
             are at best in table {schema}.{table}. To continue, run {drop}`tidings relay rewind \
             --all --name {name}`, which publishes every row of the table once more, or `tidings \
             relay skip --all --name {name}`, which publishes only new events; then start the \
             relay, which creates a new slot. max_slot_wal_keep_size limits the log that the \
             server keeps for a stopped relay",
            log = position.resume_lsn,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::{HandOver, position::Witness};

    #[test]
    fn a_relay_of_the_log_alone_begins_once_and_afterwards_needs_its_slot() {
        let outbox = DebeziumOutbox::new("public", "outbox");
        let leaving = DebeziumOutbox {
            existing: ExistingRows::Leave,
            ..outbox.clone()
        };
        let taking = DebeziumOutbox {
            hand_over: Some(HandOver {
                slot: "debezium".into(),
                offset: None,
            }),
            ..outbox.clone()
        };
        let start = Position::start();
        let witness = Some(Witness {
            id: uuid::Uuid::nil(),
            seq: 0,
            xid: 9,
        });
        let later = Position {
            resume_lsn: Lsn(50),
            witness,
            ..Position::start()
        };
        for (kept, position, moved, outbox, expected) in [
            (
                Kept::None,
                &start,
                false,
                &outbox,
                First::Begin(ExistingRows::Publish),
            ),
            (
                Kept::From(Lsn(9)),
                &start,
                false,
                &outbox,
                First::Begin(ExistingRows::Publish),
            ),
            (
                Kept::None,
                &start,
                false,
                &leaving,
                First::Begin(ExistingRows::Leave),
            ),
            (
                Kept::From(Lsn(9)),
                &start,
                false,
                &leaving,
                First::BeginAtSlot,
            ),
            (Kept::None, &start, false, &taking, First::TakeOver),
            (Kept::From(Lsn(9)), &start, false, &taking, First::TakeOver),
            (Kept::From(Lsn(50)), &later, false, &taking, First::Stream),
            (
                Kept::From(Lsn(51)),
                &later,
                false,
                &outbox,
                First::Refuse(Lost::Advanced(Lsn(51))),
            ),
            (
                Kept::None,
                &later,
                false,
                &outbox,
                First::Refuse(Lost::Gone),
            ),
            (
                Kept::Unreadable,
                &later,
                false,
                &leaving,
                First::Refuse(Lost::Unreadable),
            ),
            // The operator has moved the position.
            (
                Kept::None,
                &start,
                true,
                &leaving,
                First::Begin(ExistingRows::Publish),
            ),
            (
                Kept::None,
                &later,
                true,
                &outbox,
                First::Begin(ExistingRows::Leave),
            ),
            (
                Kept::From(Lsn(51)),
                &later,
                true,
                &outbox,
                First::StreamFrom(Lsn(51)),
            ),
        ] {
            assert_eq!(
                first(kept, position, moved, outbox),
                expected,
                "{kept:?} {position:?} {moved}"
            );
        }
    }
}
