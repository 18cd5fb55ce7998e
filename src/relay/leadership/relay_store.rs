//! The relay's row in Postgres: epoch, position and published events. Reads and writes `relay` and
//! `relay_topic` for the leading relay.
//!
//! | file | content |
//! |---|---|
//! | `saved` | the row's content at a start |
//! | `topics` | the relay's topics and their counts |
//! | `secret` | the secret that signs positions |
//! | `session` | connections, and the time limit of a statement |

mod saved;
mod secret;
mod session;
mod topics;

use sqlx::{AssertSqlSafe, PgConnection, Row as _, types::Json};

#[cfg(feature = "cli")]
pub(crate) use self::secret::known_seal;
use self::{saved::SAVED, secret::seal, session::set_synchronous_commit, topics::TopicChanges};
pub(crate) use self::{
    saved::{Saved, saved},
    session::{connect, hostname, within},
    topics::Registered,
};
use crate::postgres::encodable::{bytes_of, encodable};
use crate::relay::{
    RelayOptions,
    error::Interruption,
    pipeline::clock::Clock,
    position::{Identity, Position, Seal},
    startup::{names::LogNames, preflight},
};

/// SQL for the server's clock, in milliseconds since the Unix epoch.
const CLOCK: &str = "(extract(epoch from clock_timestamp()) * 1000)::bigint";

/// A statement on the relay's row, under construction.
type RowQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Values of a regular checkpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checkpoint<'a> {
    pub(crate) position: &'a Position,
    pub(crate) number: u64,
    pub(crate) source: Reading,
    pub(crate) reason: &'a str,
    pub(crate) published: u64,
}

/// The source that a relay reads at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Wal,
    Table,
}

/// A connection for the relay's row, with the relay's epoch, which every write to the row checks.
pub(crate) struct RelayStore {
    session: PgConnection,
    schema: String,
    name: String,
    epoch: i64,
    topics: TopicChanges,
    seal: Seal,
    /// The database records that every position of this relay is signed.
    signs: bool,
    /// The server's clock at the last statement.
    clock: Clock,
}

impl RelayStore {
    /// Connects, takes over the relay's row (which raises its epoch) and reads it.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable or the tables do not exist.
    pub(crate) async fn take_over(options: &RelayOptions) -> Result<(Self, Saved), Interruption> {
        let mut session = connect(options, "relay relay_store").await?;
        // The epoch must survive a crash. A synchronous standby need not have it, especially as
        // this relay's own stream may count as one.
        set_synchronous_commit(&mut session, "local").await?;
        let schema = format!("\"{}\"", options.schema);
        let sql = format!(
            "insert into {schema}.relay as r (name, epoch, leader, heartbeat_at)
                 values ($1, 1, {}, now())
             on conflict (name) do update
                 set epoch = r.epoch + 1, leader = excluded.leader, heartbeat_at = now()
             returning epoch, topic_changes, current_database()::text as database, {CLOCK} as clock,
                 {SAVED}",
            encodable("$2::bytea")
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(&options.name)
            .bind(leader());
        let doing = "taking over the relay's row";
        let row = within(doing, row.fetch_one(&mut session)).await?;
        let read = || -> Result<_, sqlx::Error> {
            let clock = Clock::showing(row.try_get("clock")?);
            Ok((
                row.try_get("epoch")?,
                row.try_get("topic_changes")?,
                clock,
                row.try_get::<String, _>("database")?,
                Saved::of(&row)?,
            ))
        };
        let (epoch, changes, clock, database, mut saved) =
            read().map_err(Interruption::sql(doing))?;
        if !options.event_source.is_empty() {
            saved.event_source.clone_from(&options.event_source);
        } else if saved.event_source.is_empty() {
            saved.event_source = saved.first_source(&database);
            let keep = format!(
                "update {schema}.relay set event_source = $3 where name = $1 and epoch = $2"
            );
            let keep = sqlx::query(AssertSqlSafe(keep))
                .bind(&options.name)
                .bind(epoch)
                .bind(&saved.event_source);
            within(
                "storing the source of its events",
                keep.execute(&mut session),
            )
            .await?;
        }
        let (seal, signs) = seal(&mut session, &schema, &options.name).await?;
        // From here on, a crash may lose the last position. At least once then repeats events.
        set_synchronous_commit(&mut session, "off").await?;
        let topics = TopicChanges {
            began: changes,
            now: changes,
        };
        Ok((
            Self {
                session,
                schema,
                name: options.name.clone(),
                epoch,
                topics,
                seal,
                signs,
                clock,
            },
            saved,
        ))
    }

    /// Returns the database's clock.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Returns this relay's epoch.
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Returns the connection, for queries about the server.
    pub(crate) fn session(&mut self) -> &mut PgConnection {
        &mut self.session
    }

    /// Returns the parts of a statement on another table of the relay: the connection, the schema
    /// (quoted), the relay's name and its epoch.
    pub(crate) fn parts(&mut self) -> (&mut PgConnection, &str, &str, i64) {
        (&mut self.session, &self.schema, &self.name, self.epoch)
    }

    /// Checks that rows of the outbox are still inserted with the ids of their transactions.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`preflight::require_own_transactions`].
    pub(crate) async fn require_own_transactions(&mut self) -> Result<(), Interruption> {
        preflight::require_own_transactions(&mut self.session, self.schema.trim_matches('"')).await
    }

    /// Stores the database and the Kafka cluster of the relay's position, its delivery and its
    /// table.
    ///
    /// # Errors
    ///
    /// Returns [`Interruption::LeaseLost`] if another relay has taken over.
    pub(crate) async fn begin(
        &mut self,
        options: &RelayOptions,
        identity: &Identity,
        cluster: &str,
    ) -> Result<(), Interruption> {
        let sql = "identity = $3, kafka_cluster_id = $4, delivery = $5, table_schema = $6, \
                   table_name = $7";
        let (schema, table) = options.debezium.as_ref().map(|_| options.table()).unzip();
        let delivery = options.delivery.word();
        let doing = "storing the relay's start";
        self.write(
            sql,
            |query| {
                query
                    .bind(Json(identity))
                    .bind(cluster)
                    .bind(delivery)
                    .bind(schema)
                    .bind(table)
            },
            doing,
        )
        .await
    }

    /// Stores the names of slot and publication, which the relay keeps from now on.
    ///
    /// # Errors
    ///
    /// Returns [`Interruption::LeaseLost`] if another relay has taken over.
    pub(crate) async fn keep_names(
        &mut self,
        options: &RelayOptions,
        names: &LogNames,
    ) -> Result<(), Interruption> {
        // A configured publication is not the relay's own.
        let (slot, publication) = (
            &names.slot,
            options
                .configured_publication()
                .is_none()
                .then_some(&names.publication),
        );
        let doing = "storing the names of slot and publication";
        self.write(
            "slot = $3, publication = $4",
            |query| query.bind(slot).bind(publication),
            doing,
        )
        .await
    }

    /// Stores the relay's position. Everything before it is in Kafka. Completes a move by an
    /// operator.
    ///
    /// # Errors
    ///
    /// Returns [`Interruption::LeaseLost`] if another relay has taken over.
    pub(crate) async fn checkpoint(&mut self, at: Checkpoint<'_>) -> Result<(), Interruption> {
        let sql = format!(
            "position = $3, position_epoch = $2, number = $4, source = $5, source_reason = {},
             published = published + $7,
             moved_to = null, given_up = null, adopts = null, updated_at = now()",
            encodable("$6::bytea")
        );
        let (number, source, published) = (
            at.number.cast_signed(),
            at.source.word(),
            at.published.cast_signed(),
        );
        let position = Json(at.position);
        self.write(
            &sql,
            |query| {
                query
                    .bind(position)
                    .bind(number)
                    .bind(source)
                    .bind(bytes_of(at.reason))
                    .bind(published)
            },
            "storing the position",
        )
        .await
    }

    /// Makes the server flush its log: a commit that waits for its own flush also flushes
    /// everything before it. (A logical message would do too, but every decoder of the database's
    /// log would receive it.)
    ///
    /// # Errors
    ///
    /// Returns [`Interruption::LeaseLost`] if another relay has taken over.
    pub(crate) async fn flush(&mut self) -> Result<(), Interruption> {
        set_synchronous_commit(&mut self.session, "local").await?;
        self.heartbeat().await?;
        set_synchronous_commit(&mut self.session, "off").await
    }

    /// Stores a sign of life of the relay without other changes.
    ///
    /// # Errors
    ///
    /// Returns [`Interruption::LeaseLost`] if another relay has taken over.
    pub(crate) async fn heartbeat(&mut self) -> Result<(), Interruption> {
        self.write(
            "updated_at = updated_at",
            |query| query,
            "storing the heartbeat",
        )
        .await
    }

    /// Returns the floor of retention. Events of transactions below it may be missing from the
    /// outbox.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn floor(&mut self) -> Result<u64, Interruption> {
        // The lock waits for a batch of deletes that may not have seen this relay's row.
        floor(&mut self.session, &self.schema, " for share").await
    }

    async fn write(
        &mut self,
        sql: &str,
        bind: impl FnOnce(RowQuery<'_>) -> RowQuery<'_>,
        doing: &'static str,
    ) -> Result<(), Interruption> {
        let sql = format!(
            "update {}.relay set {sql}, heartbeat_at = now() where name = $1 and epoch = $2
                 returning topic_changes, {CLOCK}",
            self.schema
        );
        let query = bind(
            sqlx::query(AssertSqlSafe(sql))
                .bind(&self.name)
                .bind(self.epoch),
        );
        let row = within(doing, query.fetch_optional(&mut self.session))
            .await?
            .ok_or(Interruption::LeaseLost)?;
        let shown;
        (self.topics.now, shown) = row
            .try_get(0)
            .and_then(|changes| Ok((changes, row.try_get(1)?)))
            .map_err(Interruption::sql(doing))?;
        self.clock = Clock::showing(shown);
        Ok(())
    }
}

impl Reading {
    /// Returns the word that the database stores.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Table => "table",
        }
    }
}

/// Returns the floor of retention in this schema, which is in quotes. Events of transactions below
/// it may be missing from the outbox.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
pub(crate) async fn floor(
    session: &mut PgConnection,
    schema: &str,
    lock: &str,
) -> Result<u64, Interruption> {
    let sql = format!("select floor::text from {schema}.retention{lock}");
    let floor = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).fetch_optional(session);
    Ok(within("reading the floor of retention", floor)
        .await?
        .and_then(|floor| floor.parse().ok())
        .unwrap_or(0))
}

/// Returns the name of this process, as bytes for [`encodable`].
fn leader() -> Vec<u8> {
    bytes_of(&format!("{}:{}", hostname(), std::process::id()))
}
