//! An outbox in its own database, and a replication slot that holds its backlog. Each run uses a
//! copy of the slot.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use super::{
    Outcome,
    servers::Servers,
    tidings::{Mode, Tidings},
};

/// The slot that holds the backlog. It is never confirmed; a relay works on a copy.
pub(crate) const BASE_SLOT: &str = "bench_base";

/// The relay's slot. A relay adopts an existing slot of this name together with the publication of
/// the same name.
const TIDINGS_SLOT: &str = "tidings";

/// Creates the publication and the slot beforehand, so that their names are known.
const TIDINGS_PUBLICATION: &str =
    "create publication tidings for table tidings.outbox with (publish = 'insert')";
const MAKE_TIDINGS_SLOT: &str = "select pg_create_logical_replication_slot('tidings', 'pgoutput')";

/// Number of distinct keys.
pub(crate) const KEYS: u32 = 20_000;

/// Inserts `n` events in transactions of `per_tx` events. Each payload is a JSON object of about
/// `pad` + 50 bytes.
const LOAD: &str = "
create or replace procedure load(n bigint, per_tx bigint, pad int, keys int) language plpgsql as $$
declare i bigint := 0;
begin
  while i < n loop
    insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
      select 'order', (g % keys)::text, 'OrderPlaced',
             json_build_object('n', g, 'at', extract(epoch from clock_timestamp()),
                               'pad', repeat('x', pad))
      from generate_series(i, least(i + per_tx, n) - 1) g;
    commit;
    i := i + per_tx;
  end loop;
end $$";

/// Publishes only the columns that Debezium's EventRouter reads, so that Debezium decodes no
/// others.
const DEBEZIUM_PUBLICATION: &str = "create publication bench_debezium for table tidings.outbox
    (seq, id, aggregatetype, aggregateid, type, payload) with (publish = 'insert')";

/// A database with an outbox.
pub(crate) struct Outbox {
    pub(crate) database: String,
    pub(crate) url: String,
    pub(crate) session: PgConnection,
}

/// Size and shape of a backlog.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backlog {
    pub(crate) events: u64,
    pub(crate) per_tx: u64,
    pub(crate) pad: u32,
}

impl Outbox {
    /// Creates the database and the tables, and runs Tidings once.
    ///
    /// The first start of a relay publishes the table instead of the log; the measured ones read
    /// the log.
    pub(crate) async fn create(
        servers: &Servers,
        database: &str,
        tidings: &Tidings,
    ) -> Outcome<Self> {
        let mut server = PgConnection::connect(&servers.postgres.url()).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("create database {database}")))
            .execute(&mut server)
            .await?;
        let url = servers.url(database);
        let pool = PgPool::connect(&url).await?;
        ::tidings::migrate(&pool).await?;
        pool.close().await;
        let mut session = PgConnection::connect(&url).await?;
        for sql in [
            LOAD,
            DEBEZIUM_PUBLICATION,
            TIDINGS_PUBLICATION,
            MAKE_TIDINGS_SLOT,
        ] {
            sqlx::raw_sql(sql).execute(&mut session).await?;
        }
        let mut outbox = Self {
            database: database.to_owned(),
            url,
            session,
        };
        let relay = tidings.start(&outbox.url, "none", Mode::Default)?;
        outbox.until_active(TIDINGS_SLOT, &relay).await?;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        relay.stop()?;
        Ok(outbox)
    }

    /// Loads a backlog behind the base slot.
    pub(crate) async fn load(&mut self, backlog: Backlog) -> Outcome<()> {
        let Backlog {
            events,
            per_tx,
            pad,
        } = backlog;
        self.load_with(&format!("call load({events}, {per_tx}, {pad}, {KEYS})"))
            .await
    }

    /// Loads a backlog behind the base slot with a statement.
    pub(crate) async fn load_with(&mut self, load: &str) -> Outcome<()> {
        let copy =
            format!("select pg_copy_logical_replication_slot('{TIDINGS_SLOT}', '{BASE_SLOT}')");
        let save = "create table saved as select * from tidings.relay";
        // Only the load commits asynchronously; the sessions of the relays keep their settings.
        let load = format!("set synchronous_commit = off; {load}");
        for sql in [copy.as_str(), save] {
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut self.session)
                .await?;
        }
        for sql in load.split("; ").map(str::to_owned) {
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut self.session)
                .await?;
        }
        sqlx::raw_sql("checkpoint")
            .execute(&mut self.session)
            .await?;
        Ok(())
    }

    /// Moves Tidings back to the beginning of the backlog.
    pub(crate) async fn rewind_tidings(&mut self) -> Outcome<()> {
        self.copy_slot(TIDINGS_SLOT).await?;
        // As `tidings relay rewind` does: at its next start, the relay takes this position instead
        // of the one in its topic.
        let restore = "update tidings.relay set moved_to = (select position from saved)";
        sqlx::raw_sql(restore).execute(&mut self.session).await?;
        Ok(())
    }

    /// Copies the base slot to `slot` and replaces an existing slot of that name.
    pub(crate) async fn copy_slot(&mut self, slot: &str) -> Outcome<()> {
        self.drop_slot(slot).await?;
        let copy = format!("select pg_copy_logical_replication_slot('{BASE_SLOT}', '{slot}')");
        sqlx::raw_sql(AssertSqlSafe(copy))
            .execute(&mut self.session)
            .await?;
        Ok(())
    }

    /// Drops a slot if it exists, after terminating the session that uses it.
    pub(crate) async fn drop_slot(&mut self, slot: &str) -> Outcome<()> {
        let end = "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots \
                   where slot_name = $1 and active";
        sqlx::query(end)
            .bind(slot)
            .execute(&mut self.session)
            .await?;
        let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                    where slot_name = $1";
        sqlx::query(drop)
            .bind(slot)
            .execute(&mut self.session)
            .await?;
        Ok(())
    }

    /// Drops every slot of this database, so that the server can remove the WAL, and empties the
    /// outbox.
    pub(crate) async fn finish(mut self) -> Outcome<()> {
        let slots: Vec<String> = sqlx::query_scalar(
            "select slot_name::text from pg_replication_slots where database = current_database()",
        )
        .fetch_all(&mut self.session)
        .await?;
        for slot in slots {
            self.drop_slot(&slot).await?;
        }
        sqlx::raw_sql("truncate tidings.outbox; checkpoint")
            .execute(&mut self.session)
            .await?;
        Ok(())
    }

    /// Returns the process id of the walsender that streams from a slot, if there is one.
    pub(crate) async fn walsender(&mut self, slot: &str) -> Outcome<Option<u32>> {
        let pid: Option<Option<i32>> =
            sqlx::query_scalar("select active_pid from pg_replication_slots where slot_name = $1")
                .bind(slot)
                .fetch_optional(&mut self.session)
                .await?;
        Ok(pid.flatten().map(i32::cast_unsigned))
    }

    /// Waits until `relay` streams from `slot`.
    pub(crate) async fn until_active(
        &mut self,
        slot: &str,
        relay: &super::process::Process,
    ) -> Outcome<()> {
        while self.walsender(slot).await?.is_none() {
            relay.still_runs()?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}
