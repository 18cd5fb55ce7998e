//! What every test starts from: a database of its own, on servers that are started once.

use std::io::Write as _;
use std::sync::LazyLock;

use dev_services::{Kafka, KafkaOptions, Postgres, PostgresOptions, Services};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool};
use uuid::Uuid;

/// One Postgres and one Kafka for all tests of this process; gone with it.
static SERVICES: LazyLock<Services> = LazyLock::new(|| {
    // RUST_LOG=info shows what the relays under test say.
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_ansi(false).init();
    Services::start().unwrap_or_else(|error| panic!("{error}"))
});

/// Set to 1, it makes a missing program a failure: for machines that have to run every test.
const ALL: &str = "TIDINGS_TEST_ALL";

/// Reports that a test does nothing because a program is missing, with the command that installs it.
///
/// # Panics
/// If `TIDINGS_TEST_ALL` is 1.
pub(crate) fn skipped(what: &str, remedy: &str) {
    let line = format!("\nSKIPPED: {what}; {remedy}\n");
    assert!(std::env::var_os(ALL).is_none_or(|value| value != "1"), "{ALL}=1, but {line}");
    // Not by `eprintln!`, whose text the test harness shows for failed tests alone.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Sends a signal. By the shell, because a small machine has no program `kill`.
pub(crate) fn signal(process: u32, name: &str) {
    let sent = std::process::Command::new("sh").args(["-c", r#"kill -s "$0" "$1""#, name, &process.to_string()]).status();
    assert!(sent.expect("sh runs").success(), "{name} is sent to {process}");
}

/// A database of one test, gone when this is dropped.
pub(crate) struct TestDatabase {
    pub(crate) pool: PgPool,
    pub(crate) url: String,
    name: String,
    server: PgConnectOptions,
}

/// The brokers of the shared Kafka.
pub(crate) fn brokers() -> String {
    SERVICES.brokers()
}

/// A broker of one test's own, which it may break.
pub(crate) async fn own_kafka(options: KafkaOptions) -> Kafka {
    tokio::task::spawn_blocking(|| Kafka::start(options)).await.expect("no panic").expect("a broker of its own")
}

/// A server of one test's own, which it may break.
pub(crate) async fn own_postgres(options: PostgresOptions) -> Postgres {
    tokio::task::spawn_blocking(|| Postgres::start(options)).await.expect("no panic").expect("a server of its own")
}

/// An empty database on the shared server.
pub(crate) async fn database() -> TestDatabase {
    database_on(&SERVICES.database_url()).await
}

/// An empty database on the server of this URL.
async fn database_on(server_url: &str) -> TestDatabase {
    let server: PgConnectOptions = server_url.parse().expect("a postgres:// URL");
    let name = format!("tidings_test_{}", Uuid::now_v7().simple());
    let mut admin = server.connect().await.expect("the server answers");
    sqlx::query(AssertSqlSafe(format!("create database {name}"))).execute(&mut admin).await.expect("a database can be created");
    admin.close().await.expect("the connection closes");
    let options = server.clone().database(&name);
    let mut url: url::Url = server_url.parse().expect("a URL");
    url.set_path(&name);
    let pool = PgPoolOptions::new().max_connections(8).connect_with(options).await.expect("the new database answers");
    TestDatabase { pool, url: url.to_string(), name, server }
}

/// A database with the tables of Tidings.
pub(crate) async fn migrated_database() -> TestDatabase {
    let database = database().await;
    tidings::migrate(&database.pool).await.expect("an empty database can be migrated");
    database
}

/// A database with the tables of Tidings on the server of this URL.
pub(crate) async fn migrated_database_on(server_url: &str) -> TestDatabase {
    let database = database_on(server_url).await;
    tidings::migrate(&database.pool).await.expect("an empty database can be migrated");
    database
}

impl TestDatabase {
    /// A pool of another role on this database, for what the owner may do and others may not.
    pub(crate) async fn pool_as(&self, role: &str) -> PgPool {
        let options = self.server.clone().database(&self.name).username(role).password("secret");
        PgPoolOptions::new().max_connections(2).connect_with(options).await.expect("the role may connect")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (name, server) = (self.name.clone(), self.server.clone());
        // A thread of its own: a runtime cannot be entered from within the test's.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(sqlx::Error::Io)?;
            runtime.block_on(async {
                let mut admin = server.connect().await?;
                // A slot would keep its database.
                let drop_slots = "select pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name) from pg_replication_slots where database = $1";
                let _ = sqlx::query(drop_slots).bind(&name).execute(&mut admin).await;
                sqlx::query(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).execute(&mut admin).await?;
                admin.close().await
            })
        });
        // A database that stays behind is no reason to fail a test.
        drop(dropping.join());
    }
}
