//! PgBouncer in transaction mode: publishers and subscribers work through it, and a relay reports
//! that it cannot. Skipped where `pgbouncer` is not installed.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tidings::{
    DomainEvent, Outbox,
    relay::SourceKind,
    subscriber::{Event, HandlerError, Tx},
};

use crate::support::place::{
    self as subscriber, Changed, assert_once_and_in_order, create_effects, start,
};
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, migrated_database, skipped};

#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "order", id = "order_id")]
struct Pooled {
    order_id: i32,
    version: i32,
}

/// A PgBouncer with few server connections per database, so that clients share them all the time.
struct PgBouncer {
    child: Child,
    folder: PathBuf,
    port: u16,
    /// `true` if it supports prepared statements in transaction mode (1.21 and later).
    prepares: bool,
}

impl PgBouncer {
    async fn start(database: &TestDatabase, server_connections: u32) -> Option<Self> {
        Self::start_in("transaction", database, server_connections).await
    }

    async fn start_in(
        mode: &str,
        database: &TestDatabase,
        server_connections: u32,
    ) -> Option<Self> {
        let program = ["pgbouncer", "/usr/sbin/pgbouncer"]
            .into_iter()
            .find(|program| Command::new(program).arg("--version").output().is_ok());
        let Some(program) = program else {
            skipped(
                "poolers are not tested without PgBouncer",
                "on Debian, `apt-get install pgbouncer`",
            );
            return None;
        };
        let version = String::from_utf8_lossy(
            &Command::new(program)
                .arg("--version")
                .output()
                .expect("it runs")
                .stdout,
        )
        .into_owned();
        let minor: u32 = version
            .split('.')
            .nth(1)
            .and_then(|minor| minor.trim().parse().ok())
            .unwrap_or_default();
        let url: url::Url = database.url.parse().expect("a URL");
        let port = TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .expect("a port")
            .port();
        let folder = std::env::temp_dir().join(format!(
            "tidings-it-pgbouncer-{}",
            uuid::Uuid::now_v7().simple()
        ));
        std::fs::create_dir(&folder).expect("a folder");
        let prepares = minor >= 21;
        let password = url
            .password()
            .map(|password| format!(" password={password}"))
            .unwrap_or_default();
        let settings = format!(
            "[databases]\n* = host={} port={} user={}{password}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\ndefault_pool_size = {server_connections}\n\
             ignore_startup_parameters = extra_float_digits,options\n{}",
            url.host_str().expect("a host"),
            url.port().expect("a port"),
            url.username(),
            if prepares {
                "max_prepared_statements = 100\n"
            } else {
                ""
            }
        );
        let file = folder.join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("the write succeeds");
        let mut command = Command::new(program);
        // PgBouncer refuses to run as root.
        if std::fs::metadata("/proc/self")
            .is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
        {
            command.args(["-u", "nobody"]);
        }
        let child = command
            .arg("-q")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        Some(Self {
            child,
            folder,
            port,
            prepares,
        })
    }

    fn url(&self, database: &TestDatabase) -> String {
        let mut url: url::Url = database.url.parse().expect("a URL");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(self.port)).expect("a port");
        url.to_string()
    }

    async fn pool(&self, database: &TestDatabase) -> PgPool {
        let options: PgConnectOptions = self.url(database).parse().expect("a URL");
        for _ in 0..2_400 {
            if let Ok(pool) = PgPoolOptions::new()
                .max_connections(6)
                .connect_with(options.clone())
                .await
            {
                return pool;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("pgbouncer does not answer")
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_through_pgbouncer_in_transaction_mode_works_with_the_lock_and_with_rollbacks() {
    let database = migrated_database().await;
    let Some(pgbouncer) = PgBouncer::start(&database, 2).await else {
        return;
    };
    let pool = pgbouncer.pool(&database).await;
    sqlx::raw_sql("create table counter (id int primary key, version int not null)")
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    sqlx::raw_sql("insert into counter values (1, 0), (2, 0)")
        .execute(&database.pool)
        .await
        .expect("the table is filled");
    let prepared = pgbouncer.prepares;
    let writers = (0..6).map(|writer| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let outbox = if prepared {
                Outbox::new()
            } else {
                Outbox::new().unprepared()
            };
            let outbox = if writer < 3 {
                outbox
            } else {
                outbox.serialize_aggregates()
            };
            for n in 0..30 {
                let mut tx = pool.begin().await.expect("a transaction begins");
                let order_id = writer % 2 + 1;
                let update =
                    "update counter set version = version + 1 where id = $1 returning version";
                let version: i32 = sqlx::query_scalar(update)
                    .persistent(prepared)
                    .bind(order_id)
                    .fetch_one(&mut *tx)
                    .await
                    .expect("the update succeeds");
                outbox
                    .publish(&mut tx, &Pooled { order_id, version })
                    .await
                    .expect("the event is published");
                if n % 5 == 0 {
                    tx.rollback().await.expect("the rollback succeeds");
                } else {
                    tx.commit().await.expect("the commit succeeds");
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("the task does not panic");
    }
    // A relay without the pooler then publishes each committed change once and in order.
    let place = Place::new(&database);
    let relay = place.start();
    let mut reader = place.reader();
    reader.until_distinct(6 * 24);
    relay.stop().await;
    for order in ["1", "2"] {
        let of = |record: &&crate::support::records::Record| record.key == order.as_bytes();
        let events = reader
            .read_to_the_end()
            .iter()
            .filter(of)
            .map(|record| serde_json::from_str(record.text()).expect("an event"));
        let versions: Vec<i32> = events.map(|event: Pooled| event.version).collect();
        assert_eq!(versions, (1..=72).collect::<Vec<_>>(), "{order}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_behind_pgbouncer_in_transaction_mode_has_each_effect_once_and_in_order() {
    async fn unprepared(Event(changed): Event<Changed>, mut tx: Tx) -> Result<(), HandlerError> {
        let insert =
            sqlx::query("insert into effect (account, version) values ($1, $2)").persistent(false);
        insert
            .bind(changed.account)
            .bind(changed.version)
            .execute(&mut *tx)
            .await?;
        Ok(())
    }
    let database = migrated_database().await;
    // With more clients than connections, a client gets another connection in each transaction.
    let Some(pgbouncer) = PgBouncer::start(&database, 3).await else {
        return;
    };
    let place = subscriber::Place::new(4).await;
    create_effects(&database.pool).await;
    let twice: Vec<_> = place
        .publish(20, 1..=20)
        .await
        .into_iter()
        .take(100)
        .collect();
    place.send(&twice).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(unprepared)
            .inbox(pgbouncer.pool(&database).await)
            .concurrency(6)
    );
    running
        .until("all are handled", |seen| {
            seen.handled() + seen.duplicates() == 500
        })
        .await;
    assert_eq!(
        (
            running.statistics.failed_attempts(),
            running.statistics.duplicates()
        ),
        (0, 100)
    );
    running.stop().await;
    assert_once_and_in_order(&database.pool, 20, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_given_a_pooler_says_so_and_names_the_remedy() {
    let database = migrated_database().await;
    let Some(pgbouncer) = PgBouncer::start(&database, 5).await else {
        return;
    };
    drop(pgbouncer.pool(&database).await);
    for source in [SourceKind::Auto, SourceKind::Poll] {
        let mut place = Place::new(&database);
        place.url = pgbouncer.url(&database);
        let mut options = place.options();
        options.source = source;
        let refusal = Running::start(options).refusal().await;
        assert!(
            refusal.contains("a pooler that shares sessions")
                && refusal.contains("set Postgres itself"),
            "{source:?}: {refusal}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_behind_a_session_pool_that_is_too_small_names_the_connections_that_it_needs() {
    let database = migrated_database().await;
    let Some(pooler) = PgBouncer::start_in("session", &database, 3).await else {
        return;
    };
    // Wait for the pooler, because otherwise the first attempt fails.
    drop(pooler.pool(&database).await);
    let place = Place {
        url: pooler.url(&database),
        ..Place::new(&database)
    };
    let relay = place.start();
    relay
        .says(
            "database",
            "only 3 of the 5 connections to the database that a relay needs can be open at once",
        )
        .await;
    relay.stop().await;
}
