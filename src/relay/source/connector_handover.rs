//! Takeover from a stopped Debezium connector. Its slot and its stored offset determine the events
//! that it has published.
//!
//! A connector publishes transactions in the order of their commits. It stores its progress as
//! `lsn` (of the last event that it sent) and `txId` (that event's transaction). Its slot confirms
//! less than that. Therefore the slot is copied, and the changes in the copy are read without
//! consuming them. Every transaction before `txId`, and the events of `txId` up to `lsn`, count as
//! published.

use serde::Deserialize;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::long_query::{backend, watched};
use crate::{
    postgres::Lsn,
    relay::{
        HandOver, RelayOptions,
        error::Interruption,
        leadership::relay_store::within,
        position::{Partial, Position, Snapshot, XidSet},
        startup::names::LogNames,
    },
};

/// Activity of [`copy_slot`], for error messages.
const TAKING_OVER: &str = "taking over the connector's slot";

/// State of a slot: it is in use, and the log before this position is confirmed.
type SlotState = (bool, Lsn);

/// Progress of a connector, as stored by Kafka Connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    lsn: u64,
    transaction: Option<u32>,
}

/// The text is not a connector's offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no stored offset of a Postgres connector: expected JSON with a number `lsn`, as returned by \
     GET /connectors/NAME/offsets"
)]
pub struct OffsetError;

/// One transaction in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transaction {
    xid: u32,
    /// Number of its events in the outbox, of those before the offset, and of those exactly at the
    /// offset: a bulk load writes many rows at one log position.
    events: u64,
    before: u64,
    at: u64,
    commit: u64,
}

impl Offset {
    /// Parses the response of `GET /connectors/NAME/offsets`, or the offset within it.
    ///
    /// # Errors
    ///
    /// Returns [`OffsetError`] if the text has no `lsn`, or the offsets of several databases.
    pub fn parse(text: &str) -> Result<Self, OffsetError> {
        #[derive(Deserialize)]
        struct Stored {
            lsn: u64,
            #[serde(rename = "txId")]
            transaction: Option<u64>,
        }
        let json: serde_json::Value = serde_json::from_str(text).map_err(|_| OffsetError)?;
        let inner = match json
            .get("offsets")
            .and_then(serde_json::Value::as_array)
            .map(Vec::as_slice)
        {
            Some([one]) => one.get("offset").cloned().ok_or(OffsetError)?,
            Some(_) => return Err(OffsetError),
            None => json,
        };
        let stored: Stored = serde_json::from_value(inner).map_err(|_| OffsetError)?;
        // Debezium stores the 32-bit transaction id of the log.
        Ok(Self {
            lsn: stored.lsn,
            transaction: stored.transaction.map(|xid| xid as u32),
        })
    }
}

/// Returns the transactions that were published completely, and the one that was published in part
/// with the number of its published events.
fn published(
    transactions: &[Transaction],
    offset: Option<Offset>,
) -> (Vec<u32>, Option<(u32, u64)>) {
    let Some(offset) = offset else {
        return (Vec::new(), None);
    };
    let last = transactions
        .iter()
        .position(|one| Some(one.xid) == offset.transaction && one.commit >= offset.lsn);
    let Some(last) = last else {
        // The offset is before the slot's confirmed position, or its transaction has no events.
        return (
            transactions
                .iter()
                .take_while(|one| one.commit <= offset.lsn)
                .map(|one| one.xid)
                .collect(),
            None,
        );
    };
    let mut whole: Vec<u32> = transactions[..last].iter().map(|one| one.xid).collect();
    let one = transactions[last];
    // If several rows share a log position, the last published one is unknown. All of them are
    // published again, so that none is lost.
    let events = one.before + if one.at == 1 { 1 } else { 0 };
    if events == one.events {
        whole.push(one.xid);
        return (whole, None);
    }
    (whole, (events > 0).then_some((one.xid, events)))
}

/// Creates the relay's slot as a copy of the connector's slot, unless it exists. Returns the
/// position after the published events.
///
/// # Errors
///
/// Returns an interruption with the remedy if the connector still runs or its slot does not exist,
/// or an interruption if the connection is lost.
pub(crate) async fn take_over(
    options: &RelayOptions,
    names: &LogNames,
    session: &mut PgConnection,
    from: &HandOver,
) -> Result<Position, Interruption> {
    copy_slot(names, session, from).await?;
    let start = at_slot(names, session).await?;
    let transactions = transactions(options, names, session, from.offset).await?;
    let (whole, partial) = published(&transactions, from.offset);
    tracing::info!(
        transactions = whole.len(),
        in_part = partial.map(|(xid, _)| xid),
        from = %start.resume_lsn,
        "continues after the connector"
    );
    let mut also = XidSet::default();
    whole
        .into_iter()
        .for_each(|xid| also.insert(start.snapshot.widen(xid)));
    let partial = partial.map(|(xid, events)| Partial {
        xid: start.snapshot.widen(xid),
        events,
        seq: 0,
    });
    Ok(Position {
        extra_xids: also,
        partial_tx: partial,
        ..start
    })
}

/// Copies the connector's slot to the relay's, unless the relay's slot exists.
async fn copy_slot(
    names: &LogNames,
    session: &mut PgConnection,
    from: &HandOver,
) -> Result<(), Interruption> {
    let name = &names.slot;
    match slots(session, name, &from.slot).await? {
        (None, None) => {
            return Err(Interruption::Refused(format!(
                "there is no slot `{}` of plugin pgoutput in this database to take over \
                 (outbox.takes_over): name the connector's slot.name",
                from.slot
            )));
        }
        (_, Some((true, _))) => {
            return Err(Interruption::Refused(format!(
                "slot `{}` is in use: the connector still runs. Stop it (PUT \
                 /connectors/NAME/stop), put its offset (GET /connectors/NAME/offsets) in \
                 outbox.taken_offset, and start the relay",
                from.slot
            )));
        }
        (Some((_, ours)), Some((_, theirs))) if ours > theirs => {
            return Err(Interruption::Refused(format!(
                "slot `{name}` begins at {ours}, after {theirs}, which the connector's slot `{}` \
                 has confirmed: events in between would be lost. If slot `{name}` is not in use, \
                 run select pg_drop_replication_slot('{name}') and start the relay",
                from.slot
            )));
        }
        (None, Some(_)) => {
            let copy =
                sqlx::query("select pg_copy_logical_replication_slot($1, $2, false, 'pgoutput')")
                    .bind(&from.slot)
                    .bind(name);
            within(TAKING_OVER, copy.execute(&mut *session)).await?;
            tracing::info!(slot = name, from = from.slot, "copied the connector's slot");
        }
        (Some(_), _) => {}
    }
    Ok(())
}

/// Returns the states of the relay's slot and the connector's slot.
async fn slots(
    session: &mut PgConnection,
    ours: &str,
    theirs: &str,
) -> Result<(Option<SlotState>, Option<SlotState>), Interruption> {
    let slots = "select slot_name::text as name, active, plugin::text,
                        confirmed_flush_lsn::text as confirmed
                 from pg_replication_slots
                 where slot_name = any (array[$1, $2]) and database = current_database()";
    let rows = within(
        TAKING_OVER,
        sqlx::query(slots)
            .bind(ours)
            .bind(theirs)
            .fetch_all(session),
    )
    .await?;
    let confirmed = |wanted: &str| -> Option<SlotState> {
        let row = rows.iter().find(|row| {
            row.try_get::<String, _>("name")
                .is_ok_and(|name| name == wanted)
        })?;
        let pgoutput = row.try_get::<Option<String>, _>("plugin").ok()??;
        let confirmed = row
            .try_get::<Option<String>, _>("confirmed")
            .ok()??
            .parse()
            .ok()?;
        (pgoutput == "pgoutput").then(|| Some((row.try_get("active").ok()?, confirmed)))?
    };
    Ok((confirmed(ours), confirmed(theirs)))
}

/// Returns the position at the start of the relay's slot. All commits before it count as published
/// or skipped.
///
/// # Errors
///
/// Returns an interruption if the slot does not exist or the connection is lost.
pub(crate) async fn at_slot(
    names: &LogNames,
    session: &mut PgConnection,
) -> Result<Position, Interruption> {
    let doing = "reading the start of the slot";
    let row = sqlx::query(
        "select catalog_xmin::text as xmin, confirmed_flush_lsn::text as confirmed,
                pg_current_snapshot()::text as now
         from pg_replication_slots where slot_name = $1",
    );
    let row = within(doing, row.bind(&names.slot).fetch_one(session)).await?;
    let text = |column: &str| {
        row.try_get::<String, _>(column)
            .map_err(Interruption::sql(doing))
    };
    let strange = |error: String| {
        Interruption::Refused(format!(
            "the server returned an unexpected description of the slot: {error}"
        ))
    };
    let now: Snapshot = text("now")?
        .parse()
        .map_err(|error| strange(format!("{error}")))?;
    let confirmed: Lsn = text("confirmed")?
        .parse()
        .map_err(|_| strange("its position".into()))?;
    // All transactions below `catalog_xmin` had ended when the log at the slot's confirmed position
    // was written.
    let xmin = now.widen(
        text("xmin")?
            .parse()
            .map_err(|_| strange("its catalog_xmin".into()))?,
    );
    let seen = format!("{xmin}:{xmin}:")
        .parse()
        .map_err(|error| strange(format!("{error}")))?;
    Ok(Position {
        snapshot: seen,
        resume_lsn: confirmed,
        published_lsn: confirmed,
        ..Position::start()
    })
}

/// Returns the transactions in the relay's slot, in order, without consuming them.
async fn transactions(
    options: &RelayOptions,
    names: &LogNames,
    session: &mut PgConnection,
    offset: Option<Offset>,
) -> Result<Vec<Transaction>, Interruption> {
    let doing = "reading the content of the slot";
    let Some(offset) = offset else {
        return Ok(Vec::new());
    };
    // Insert: tag, the table's oid, … Commit: tag, flags, the commit's position, … (PostgreSQL
    // manual, Logical Replication Message Formats).
    let sql = format!(
        "select xid, count(*) filter (where is_event) as events,
                count(*) filter (where is_event and lsn < $3::pg_lsn) as before,
                count(*) filter (where is_event and lsn = $3::pg_lsn) as at,
                coalesce(max(('x' || encode(substring(data from 3 for 8), 'hex'))::bit(64)::bigint)
                         filter (where tag = 'C'), 0) as commit
         from (select lsn, xid::text::bigint as xid, data, row_number() over () as place,
                      chr(get_byte(data, 0)) as tag,
                      chr(get_byte(data, 0)) = 'I'
                      and ('x' || encode(substring(data from 2 for 4), 'hex'))::bit(32)::int
                          = '{}'::regclass::oid::bigint::bit(32)::int as is_event
               from pg_logical_slot_peek_binary_changes(
                        $1, null, null, 'proto_version', '1', 'publication_names', $2,
                        'binary', 'true')) change
         group by xid order by min(place)",
        options.quoted_table().replace('\'', "''")
    );
    let publication = format!("\"{}\"", names.publication.replace('"', "\"\""));
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(&names.slot)
        .bind(publication)
        .bind(Lsn(offset.lsn).to_string());
    let backend = backend(session).await?;
    let refused = |error: sqlx::Error| match error
        .as_database_error()
        .and_then(|error| error.code())
        .as_deref()
    {
        Some("42704") => Interruption::Refused(format!(
            "publication `{}` was created after the position of the connector's slot, so the slot \
             cannot be read with it: name the connector's publication.name in outbox.publication",
            names.publication
        )),
        _ => Interruption::sql(doing)(error),
    };
    // Not limited in time: it decodes the log that the connector has not confirmed, which is little
    // unless the connector was behind.
    let peeking = async { query.fetch_all(session).await.map_err(refused) };
    let rows = watched(options, doing, backend, peeking, None).await?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<Transaction, sqlx::Error> {
        let number = |column: &str| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
        let (events, before, at) = (number("events")?, number("before")?, number("at")?);
        Ok(Transaction {
            xid: number("xid")? as u32,
            events,
            before,
            at,
            commit: number("commit")?,
        })
    };
    rows.iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(Interruption::sql(doing))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_offset_is_read_as_connect_shows_it_and_as_it_stores_it() {
        let stored = r#"{"transaction_id":null,"lsn_proc":24023128,"messageType":"INSERT",
            "lsn_commit":24022000,"lsn":24023128,"txId":742,"ts_usec":1}"#;
        let shown =
            format!(r#"{{"offsets":[{{"partition":{{"server":"shop"}},"offset":{stored}}}]}}"#);
        let offset = Offset {
            lsn: 24_023_128,
            transaction: Some(742),
        };
        assert_eq!(
            (Offset::parse(stored), Offset::parse(&shown)),
            (Ok(offset), Ok(offset))
        );
        for wrong in ["", "{}", r#"{"offsets":[]}"#, "[1]", r#"{"lsn":"0/1"}"#] {
            assert_eq!(Offset::parse(wrong), Err(OffsetError), "{wrong}");
        }
    }

    proptest! {
        /// A log of transactions whose events precede their commits, interleaved. A connector
        /// publishes a part of it.
        #[test]
        fn what_a_connector_has_published_is_told_exactly(
            order in proptest::collection::vec(0u32..6, 1..60), sent in 0usize..60,
        ) {
            // Each occurrence of a number is an event of that transaction. It commits directly
            // after its last event.
            let mut log: Vec<(u64, u32, bool)> = Vec::new();
            for (at, xid) in order.iter().enumerate() {
                log.push((2 * at as u64 + 10, *xid, false));
                if !order[at + 1..].contains(xid) {
                    log.push((2 * at as u64 + 11, *xid, true));
                }
            }
            let committed: Vec<(u32, u64)> = log
                .iter()
                .filter(|(.., commit)| *commit)
                .map(|(lsn, xid, _)| (*xid, *lsn))
                .collect();
            let events = |xid: u32| {
                log.iter()
                    .filter(move |(_, one, commit)| *one == xid && !commit)
                    .map(|(lsn, ..)| *lsn)
            };
            let stream: Vec<(u32, u64)> = committed
                .iter()
                .flat_map(|(xid, _)| events(*xid).map(|lsn| (*xid, lsn)))
                .collect();
            let sent = sent.min(stream.len());
            let offset = sent.checked_sub(1).map(|last| Offset {
                lsn: stream[last].1,
                transaction: Some(stream[last].0),
            });
            let transactions: Vec<Transaction> = committed.iter().map(|(xid, commit)| {
                let lsn = offset.map_or(0, |offset| offset.lsn);
                let count = |wanted: &dyn Fn(u64) -> bool| {
                    events(*xid).filter(|lsn| wanted(*lsn)).count() as u64
                };
                Transaction {
                    xid: *xid,
                    events: count(&|_| true),
                    before: count(&|one| one < lsn),
                    at: count(&|one| one == lsn),
                    commit: *commit,
                }
            }).collect();
            let (whole, partial) = published(&transactions, offset);
            let mut left = stream[..sent].to_vec();
            for xid in whole {
                let all: Vec<_> = events(xid).collect();
                prop_assert!(all.iter().all(|lsn| left.contains(&(xid, *lsn))));
                left.retain(|(one, _)| *one != xid);
            }
            let expected: Vec<_> = partial.map_or(Vec::new(), |(xid, count)| {
                events(xid).take(count as usize).map(|lsn| (xid, lsn)).collect()
            });
            prop_assert_eq!(left, expected);
        }
    }

    #[test]
    fn rows_at_one_place_of_the_log_come_again_rather_than_never() {
        let bulk = Transaction {
            xid: 7,
            events: 10,
            before: 4,
            at: 6,
            commit: 100,
        };
        assert_eq!(
            published(
                &[bulk],
                Some(Offset {
                    lsn: 50,
                    transaction: Some(7)
                })
            ),
            (vec![], Some((7, 4)))
        );
    }
}
