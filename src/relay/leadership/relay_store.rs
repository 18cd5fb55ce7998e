//! The relay's row in Postgres: epoch, position and published events. Reads and writes `relay` and
//! `relay_topic` for the leading relay.

use std::{collections::HashMap, future::Future, time::Duration};

use sqlx::{AssertSqlSafe, PgConnection, Row as _, postgres::PgRow, types::Json};
use tokio::time::timeout;

use crate::{
    postgres::session,
    relay::{
        RelayOptions,
        error::Interruption,
        options::{SOURCE_BEFORE_DATABASES, default_event_source},
        pipeline::clock::Clock,
        position::{GivenUp, Identity, Position, Seal},
        routing::template::Route,
        startup::{
            names::{KnownNames, LogNames},
            preflight,
        },
    },
};

/// Time limit of one statement. Each touches only a few rows.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

/// SQL for the server's clock, in milliseconds since the Unix epoch.
const CLOCK: &str = "(extract(epoch from clock_timestamp()) * 1000)::bigint";

/// A statement on the relay's row, under construction.
type RowQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// The relay's row at a start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Saved {
    pub(crate) identity: Option<Identity>,
    /// `None` if this relay has not started yet.
    pub(crate) position: Option<Position>,
    /// The number of the position's record in the relay's own topic. Zero if there is none.
    pub(crate) number: u64,
    /// The epoch that stored the position.
    pub(crate) epoch: i64,
    pub(crate) cluster: Option<String>,
    /// The database that this one continues, as confirmed by the operator.
    pub(crate) adopts: Option<Identity>,
    /// The slot and the publication that it used.
    pub(crate) names: KnownNames,
    /// The position that the operator has moved the relay to.
    pub(crate) moved_to: Option<Position>,
    /// Events that the operator has given up.
    pub(crate) given_up: Vec<GivenUp>,
    /// `ce_source` of its records.
    pub(crate) event_source: String,
}

impl Saved {
    /// Returns the event source of a relay that has none stored. A relay that has already published
    /// keeps the source of its earlier records: subscribers identify events by their source, and
    /// delivery at least once may repeat some.
    fn first_source(&self, database: &str) -> String {
        match self.position {
            Some(_) => SOURCE_BEFORE_DATABASES.to_owned(),
            None => default_event_source(database),
        }
    }
}

/// The columns of [`Saved`].
const SAVED: &str = "identity, position, position_epoch, number, kafka_cluster_id, moved_to, \
                     given_up, slot, publication, adopts,
    event_source";

impl Saved {
    fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        let position = |column| {
            Ok::<_, sqlx::Error>(
                row.try_get::<Option<Json<Position>>, _>(column)?
                    .map(|Json(position)| position),
            )
        };
        let identity = |column| {
            Ok::<_, sqlx::Error>(
                row.try_get::<Option<Json<Identity>>, _>(column)?
                    .map(|Json(identity)| identity),
            )
        };
        let stored = position("position")?;
        Ok(Self {
            identity: identity("identity")?,
            number: row.try_get::<i64, _>("number")?.cast_unsigned(),
            epoch: row.try_get("position_epoch")?,
            cluster: row.try_get("kafka_cluster_id")?,
            names: KnownNames {
                slot: row.try_get("slot")?,
                publication: row.try_get("publication")?,
                has_run: stored.is_some(),
            },
            position: stored,
            moved_to: position("moved_to")?,
            adopts: identity("adopts")?,
            given_up: row
                .try_get::<Option<Json<_>>, _>("given_up")?
                .map_or_else(Vec::new, |Json(events)| events),
            event_source: row
                .try_get::<Option<String>, _>("event_source")?
                .unwrap_or_default(),
        })
    }
}

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

/// Number of changes that commands have made to the relay's topics: at the start of this relay, and
/// at the last statement.
#[derive(Clone, Copy, Debug)]
struct TopicChanges {
    began: i64,
    now: i64,
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
        let leader = format!("{}:{}", hostname(), std::process::id());
        let sql = format!(
            "insert into {schema}.relay as r (name, epoch, leader, heartbeat_at)
                 values ($1, 1, $2, now())
             on conflict (name) do update set epoch = r.epoch + 1, leader = $2, heartbeat_at = now()
             returning epoch, topic_changes, current_database()::text as database,
                 {CLOCK} as clock, {SAVED}"
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(&options.name)
            .bind(leader)
            .fetch_one(&mut session);
        let doing = "taking over the relay's row";
        let row = within(doing, row).await?;
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

    /// Returns the seal that signs the relay's positions.
    pub(crate) fn seal(&self) -> &Seal {
        &self.seal
    }

    /// Returns `true` if every position that this relay has written is signed.
    pub(crate) fn signs(&self) -> bool {
        self.signs
    }

    /// Stores that the relay signs its positions. From then on, no unsigned position counts.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn note_signed(&mut self) -> Result<(), Interruption> {
        if !self.signs {
            let sql = format!(
                "update {}.relay_secret set signs = true where relay = $1",
                self.schema
            );
            let stored = sqlx::query(AssertSqlSafe(sql))
                .bind(&self.name)
                .execute(&mut self.session);
            within("storing that positions are signed", stored).await?;
            self.signs = true;
        }
        Ok(())
    }

    /// Returns this relay's epoch.
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Returns `true` if a command has changed the relay's topics since this relay started.
    pub(crate) fn topics_have_changed(&self) -> bool {
        self.topics.now != self.topics.began
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

    /// Returns, for each topic that this relay has used, the number of partitions over which it
    /// distributes keys.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn pinned(&mut self) -> Result<HashMap<String, i32>, Interruption> {
        let sql = format!(
            "select topic, partitions from {}.relay_topic where relay = $1",
            self.schema
        );
        let rows = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&self.name)
            .fetch_all(&mut self.session);
        Ok(within("reading the topics", rows)
            .await?
            .into_iter()
            .collect())
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
        let sql = "position = $3, position_epoch = $2, number = $4, source = $5, source_reason = \
                   $6, published = published + $7,
                   moved_to = null, given_up = null, adopts = null, updated_at = now()";
        let (number, source, published) = (
            at.number.cast_signed(),
            at.source.word(),
            at.published.cast_signed(),
        );
        let position = Json(at.position);
        self.write(
            sql,
            |query| {
                query
                    .bind(position)
                    .bind(number)
                    .bind(source)
                    .bind(at.reason)
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

    /// Returns the topics that are being grown with their remaining hold times, and acknowledges
    /// the holds. The acknowledgement means that this relay has no record in flight to these topics
    /// and sends none. Call it before the first event, and read the pinned partitions after it.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn take_up_holds(&mut self) -> Result<Vec<(String, Duration)>, Interruption> {
        let sql = format!(
            "update {}.relay_topic set hold_acknowledged = true
                 where relay = $1 and hold is not null and hold_until > now()
             returning topic, extract(epoch from hold_until - now())::float8",
            self.schema
        );
        let held = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&self.name)
            .fetch_all(&mut self.session);
        let held: Vec<(String, f64)> = within("acknowledging holds on topics", held).await?;
        Ok(held
            .into_iter()
            .map(|(topic, seconds)| (topic, crate::postgres::seconds(seconds)))
            .collect())
    }

    /// Ends the holds whose time is over, and returns their topics.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn end_holds(&mut self) -> Result<Vec<String>, Interruption> {
        let sql = format!(
            "with ended as (
                 update {schema}.relay_topic set hold = null, hold_until = null,
                     hold_acknowledged = false
                 where relay = $1 and hold is not null and hold_until <= now() returning topic
             ), told as (
                 update {schema}.relay set topic_changes = topic_changes + 1
                     where name = $1 and exists (select from ended)
             )
             select topic from ended",
            schema = self.schema
        );
        let ended = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(&self.name)
            .fetch_all(&mut self.session);
        within("ending holds on topics", ended).await
    }

    /// Returns the number of topic changes by commands at the start of this relay.
    pub(crate) fn topic_changes(&self) -> i64 {
        self.topics.began
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

    /// Adds to the counts per topic.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn count_topics(
        &mut self,
        counts: &[(&Route, u64)],
    ) -> Result<(), Interruption> {
        let sql = format!(
            "insert into {}.relay_topic as t (relay, topic, partitions, published)
             select $1, c.topic, c.partitions, c.published
             from unnest($2::text[], $3::int[], $4::bigint[])
                 as c (topic, partitions, published)
             on conflict (relay, topic) do update set published = t.published + excluded.published",
            self.schema
        );
        let topics: Vec<&str> = counts
            .iter()
            .map(|(route, _)| route.topic.as_str())
            .collect();
        let partitions: Vec<i32> = counts.iter().map(|(route, _)| route.partitions).collect();
        let published: Vec<i64> = counts
            .iter()
            .map(|(_, published)| published.cast_signed())
            .collect();
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(&self.name)
            .bind(topics)
            .bind(partitions)
            .bind(published);
        within(
            "counting published events",
            query.execute(&mut self.session),
        )
        .await
        .map(|_| ())
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

/// Reads the relay's row without taking it over. Returns `None` if this relay has no row.
///
/// # Errors
///
/// Returns an error if the database is unreachable or the tables do not exist.
pub(crate) async fn saved(
    options: &RelayOptions,
    session: &mut PgConnection,
) -> Result<Option<Saved>, Interruption> {
    let doing = "reading the relay's row";
    let sql = format!(
        "select {SAVED} from \"{}\".relay where name = $1",
        options.schema
    );
    let row = within(
        doing,
        sqlx::query(AssertSqlSafe(sql))
            .bind(&options.name)
            .fetch_optional(session),
    )
    .await?;
    row.as_ref()
        .map(Saved::of)
        .transpose()
        .map_err(Interruption::sql(doing))
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

/// Opens a session of the relay on its database.
///
/// # Errors
///
/// Returns an error if the server is unreachable within the settings' `connect_timeout`.
pub(crate) async fn connect(
    options: &RelayOptions,
    role: &str,
) -> Result<PgConnection, Interruption> {
    session::open(&options.database, role)
        .await
        .map_err(Interruption::connecting(&options.database))
}

/// Returns the relay's secret and whether all of its records are signed. Creates no secret: without
/// one, the seal accepts no record.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
#[cfg(feature = "cli")]
pub(crate) async fn known_seal(
    options: &RelayOptions,
    session: &mut PgConnection,
) -> Result<(Seal, bool), Interruption> {
    let read = format!(
        "select secret, signs from \"{}\".relay_secret where relay = $1",
        options.schema
    );
    let known = sqlx::query_as(AssertSqlSafe(read))
        .bind(&options.name)
        .fetch_optional(session);
    let known: Option<(Vec<u8>, bool)> =
        within("reading the secret for signatures of positions", known).await?;
    Ok(known.map_or_else(
        || (Seal::new(&[]), false),
        |(secret, signs)| (Seal::new(&secret), signs),
    ))
}

/// Returns the relay's secret, which is created at its first start, and whether all of its records
/// are signed.
async fn seal(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
) -> Result<(Seal, bool), Interruption> {
    let doing = "reading the secret for signatures of positions";
    let read = format!("select secret, signs from {schema}.relay_secret where relay = $1");
    let known: Option<(Vec<u8>, bool)> = within(
        doing,
        sqlx::query_as(AssertSqlSafe(read.clone()))
            .bind(name)
            .fetch_optional(&mut *session),
    )
    .await?;
    let (secret, signs) = match known {
        Some(known) => known,
        None => {
            let make = format!(
                "insert into {schema}.relay_secret (relay) values ($1) on conflict do nothing"
            );
            within(
                doing,
                sqlx::query(AssertSqlSafe(make))
                    .bind(name)
                    .execute(&mut *session),
            )
            .await?;
            within(
                doing,
                sqlx::query_as(AssertSqlSafe(read))
                    .bind(name)
                    .fetch_one(session),
            )
            .await?
        }
    };
    Ok((Seal::new(&secret), signs))
}

async fn set_synchronous_commit(
    session: &mut PgConnection,
    level: &'static str,
) -> Result<(), Interruption> {
    let sql = AssertSqlSafe(format!("set synchronous_commit = {level}"));
    within("preparing the session", sqlx::raw_sql(sql).execute(session))
        .await
        .map(|_| ())
}

/// Waits for a statement for a limited time: a connection that was cut off silently never answers.
pub(crate) async fn within<T>(
    doing: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Interruption> {
    match timeout(STATEMENT_TIMEOUT, statement).await {
        Ok(done) => done.map_err(Interruption::sql(doing)),
        Err(_) => Err(Interruption::sql(doing)(sqlx::Error::Io(
            std::io::ErrorKind::TimedOut.into(),
        ))),
    }
}

/// Returns the machine's name, which identifies the leader to operators.
pub(crate) fn hostname() -> String {
    let named = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    named
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".into())
}
