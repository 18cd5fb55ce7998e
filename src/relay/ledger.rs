//! The relay's row in Postgres: who leads, where it stands, what it has published. All SQL on `relay` and `relay_topic`.

use std::{collections::HashMap, future::Future, time::Duration};

use sqlx::{AssertSqlSafe, ConnectOptions as _, PgConnection, Row as _};
use tokio::time::timeout;

use super::{
    RelayOptions,
    error::Interruption,
    position::{Identity, Position},
    route::Route,
};
use crate::postgres::Lsn;

/// How long one statement on the relay's row may take: they touch one row each.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

/// The rows that a relay found before it followed the log: those that `snapshot` sees, after `seq`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backlog {
    /// A `pg_snapshot`, taken where the slot starts.
    pub(super) snapshot: String,
    /// Everything up to this is published.
    pub(super) after: i64,
}

/// What the row says when a relay starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) identity: Option<Identity>,
    /// `None`: this relay has not begun.
    pub(super) position: Option<Position>,
    pub(super) backlog: Option<Backlog>,
}

/// The last event of which all before are acknowledged, for retention and for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) id: uuid::Uuid,
    pub(super) seq: i64,
}

/// A connection to the relay's row, with the epoch under which it may write.
pub(super) struct Ledger {
    session: PgConnection,
    schema: String,
    name: String,
    epoch: i64,
}

impl Ledger {
    /// Connects, takes the relay's row over (raising its epoch) and reads it.
    ///
    /// # Errors
    /// When the database cannot be reached, or the tables are not there.
    pub(super) async fn take_over(options: &RelayOptions) -> Result<(Self, Saved), Interruption> {
        let mut session = connect(options, "relay ledger").await?;
        // The epoch must survive a crash; a synchronous standby need not have it, all the less as this relay's stream may count as one.
        set_synchronous_commit(&mut session, "local").await?;
        let schema = format!("\"{}\"", options.schema);
        let leader = format!("{}:{}", hostname(), std::process::id());
        let sql = format!(
            "insert into {schema}.relay as r (name, epoch, leader, heartbeat_at) values ($1, 1, $2, now())
             on conflict (name) do update set epoch = r.epoch + 1, leader = $2, heartbeat_at = now()
             returning epoch, system_identifier, database_oid, commit_lsn::text, ordinal, snapshot::text, snapshot_after"
        );
        let row = sqlx::query(AssertSqlSafe(sql)).bind(&options.name).bind(leader).fetch_one(&mut session);
        let doing = "taking over the relay's row";
        let row = within(doing, row).await?;
        let read = || -> Result<_, sqlx::Error> {
            let commit_lsn = row.try_get::<Option<String>, _>("commit_lsn")?.and_then(|text| text.parse::<Lsn>().ok());
            let ordinal = row.try_get::<i64, _>("ordinal")?.cast_unsigned();
            let identity = row.try_get::<Option<String>, _>("system_identifier")?.zip(row.try_get::<Option<i64>, _>("database_oid")?);
            let saved = Saved {
                identity: identity.map(|(system_identifier, database_oid)| Identity { system_identifier, database_oid }),
                position: commit_lsn.map(|commit_lsn| Position { commit_lsn, ordinal }),
                backlog: row
                    .try_get::<Option<String>, _>("snapshot")?
                    .zip(row.try_get::<Option<i64>, _>("snapshot_after")?)
                    .map(|(snapshot, after)| Backlog { snapshot, after }),
            };
            Ok((row.try_get("epoch")?, saved))
        };
        let (epoch, saved) = read().map_err(Interruption::sql(doing))?;
        // From here on: losing the last position in a crash costs repeats, no event.
        set_synchronous_commit(&mut session, "off").await?;
        Ok((Self { session, schema, name: options.name.clone(), epoch }, saved))
    }

    /// The epoch under which this relay leads.
    pub(super) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The connection, for questions about the server.
    pub(super) fn session(&mut self) -> &mut PgConnection {
        &mut self.session
    }

    /// The number of partitions by which this relay places keys, for each topic it has met.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub(super) async fn pinned(&mut self) -> Result<HashMap<String, i32>, Interruption> {
        let sql = format!("select topic, partitions from {}.relay_topic where relay = $1", self.schema);
        let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(&self.name).fetch_all(&mut self.session);
        Ok(within("reading the topics", rows).await?.into_iter().collect())
    }

    /// Begins: the identity, the backlog to publish first, and where the log is followed from after that.
    ///
    /// # Errors
    /// [`Interruption::LeaseLost`] if another relay has taken over.
    pub(super) async fn begin(&mut self, identity: &Identity, backlog: &Backlog, from: Lsn) -> Result<(), Interruption> {
        let sql = format!(
            "update {}.relay set system_identifier = $3, database_oid = $4, snapshot = $5::pg_snapshot, snapshot_after = $6,
                    commit_lsn = $7::pg_lsn, ordinal = 0, updated_at = now() where name = $1 and epoch = $2",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(&self.name).bind(self.epoch);
        let query = query.bind(&identity.system_identifier).bind(identity.database_oid);
        let query = query.bind(&backlog.snapshot).bind(backlog.after).bind(from.to_string());
        self.write(query, "storing where the relay begins").await
    }

    /// The backlog is published up to `after`; `None` means all of it.
    ///
    /// # Errors
    /// [`Interruption::LeaseLost`] if another relay has taken over.
    pub(super) async fn backlog_published(
        &mut self,
        after: Option<i64>,
        witness: Option<Witness>,
        published: u64,
    ) -> Result<(), Interruption> {
        let sql = format!(
            "update {}.relay set snapshot = case when $3::bigint is null then null else snapshot end, snapshot_after = $3,
                    witness_id = coalesce($4, witness_id), witness_seq = coalesce($5, witness_seq), published = published + $6,
                    heartbeat_at = now(), updated_at = now() where name = $1 and epoch = $2",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(&self.name).bind(self.epoch).bind(after);
        let query = query.bind(witness.map(|witness| witness.id)).bind(witness.map(|witness| witness.seq)).bind(published.cast_signed());
        self.write(query, "storing how far the backlog is published").await
    }

    /// Stores how far the relay is. Everything before it is in Kafka.
    ///
    /// # Errors
    /// [`Interruption::LeaseLost`] if another relay has taken over.
    pub(super) async fn checkpoint(&mut self, position: Position, witness: Option<Witness>, published: u64) -> Result<(), Interruption> {
        let sql = format!(
            "update {}.relay set commit_lsn = $3::pg_lsn, ordinal = $4, witness_id = coalesce($5, witness_id), witness_seq = coalesce($6, witness_seq),
                    published = published + $7, heartbeat_at = now(), updated_at = now() where name = $1 and epoch = $2",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(&self.name).bind(self.epoch);
        let query = query.bind(position.commit_lsn.to_string()).bind(position.ordinal.cast_signed());
        let query = query.bind(witness.map(|witness| witness.id)).bind(witness.map(|witness| witness.seq)).bind(published.cast_signed());
        self.write(query, "storing the position").await
    }

    /// Adds to the counts per topic.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub(super) async fn count_topics(&mut self, counts: &[(&Route, u64)]) -> Result<(), Interruption> {
        let sql = format!(
            "insert into {}.relay_topic as t (relay, topic, partitions, published)
             select $1, c.topic, c.partitions, c.published from unnest($2::text[], $3::int[], $4::bigint[]) as c (topic, partitions, published)
             on conflict (relay, topic) do update set published = t.published + excluded.published",
            self.schema
        );
        let topics: Vec<&str> = counts.iter().map(|(route, _)| route.topic.as_str()).collect();
        let partitions: Vec<i32> = counts.iter().map(|(route, _)| route.partitions).collect();
        let published: Vec<i64> = counts.iter().map(|(_, published)| published.cast_signed()).collect();
        let query = sqlx::query(AssertSqlSafe(sql)).bind(&self.name).bind(topics).bind(partitions).bind(published);
        within("counting published events", query.execute(&mut self.session)).await.map(|_| ())
    }

    async fn write(
        &mut self,
        query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
        doing: &'static str,
    ) -> Result<(), Interruption> {
        let done = within(doing, query.execute(&mut self.session)).await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(Interruption::LeaseLost) }
    }
}

/// A session of the relay on its database.
///
/// # Errors
/// When the server cannot be reached within the settings' `connect_timeout`.
pub(super) async fn connect(options: &RelayOptions, role: &str) -> Result<PgConnection, Interruption> {
    let connecting = options.database.connect_options_as(role);
    match timeout(options.database.connect_timeout(), connecting.connect()).await {
        Ok(connected) => connected.map_err(Interruption::sql("connecting to Postgres")),
        Err(_) => Err(Interruption::sql("connecting to Postgres")(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
    }
}

async fn set_synchronous_commit(session: &mut PgConnection, level: &'static str) -> Result<(), Interruption> {
    let sql = AssertSqlSafe(format!("set synchronous_commit = {level}"));
    within("preparing the session", sqlx::raw_sql(sql).execute(session)).await.map(|_| ())
}

/// Waits for a statement, but not for ever: a connection that was cut without a word never answers.
pub(super) async fn within<T>(doing: &'static str, statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Interruption> {
    match timeout(STATEMENT_TIMEOUT, statement).await {
        Ok(done) => done.map_err(Interruption::sql(doing)),
        Err(_) => Err(Interruption::sql(doing)(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
    }
}

/// The machine's name, for people who look for the leader.
fn hostname() -> String {
    let named = std::env::var("HOSTNAME").ok().or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".into())
}
