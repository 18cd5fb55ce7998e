//! Services for tests: a database per test, on servers that start only once.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use dev_services::{Kafka, KafkaOptions, Postgres, PostgresOptions, Services};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool};
use uuid::Uuid;

/// One Postgres and one Kafka for all tests of this process. They end with the process.
static SERVICES: LazyLock<Services> = LazyLock::new(|| {
    // RUST_LOG=info shows the logs of the relays under test.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_ansi(false)
        .init();
    Services::start().unwrap_or_else(|error| panic!("{error}"))
});

/// Environment variable that makes a missing program a failure if it is 1, for machines that must
/// run every test.
const ALL: &str = "TIDINGS_TEST_ALL";

/// Reports that a test is skipped because a program is missing, and the command that installs it.
///
/// # Panics
///
/// Panics if `TIDINGS_TEST_ALL` is 1.
pub(crate) fn skipped(what: &str, remedy: &str) {
    let line = format!("\nSKIPPED: {what}; {remedy}\n");
    assert!(
        std::env::var_os(ALL).is_none_or(|value| value != "1"),
        "{ALL}=1, but {line}"
    );
    // The test harness shows the text of `eprintln!` only for failed tests.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Sends a signal through the shell, because a small machine has no program `kill`.
pub(crate) fn signal(process: u32, name: &str) {
    let sent = std::process::Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1""#, name, &process.to_string()])
        .status();
    assert!(
        sent.expect("sh runs").success(),
        "{name} is sent to {process}"
    );
}

/// A database of one test, dropped together with this value.
pub(crate) struct TestDatabase {
    pub(crate) pool: PgPool,
    pub(crate) url: String,
    /// Mark in the names of slots and topics, for the schema `tidings`.
    pub(crate) mark: String,
    pub(crate) name: String,
    server: PgConnectOptions,
}

/// Returns the brokers of the shared Kafka.
pub(crate) fn brokers() -> String {
    SERVICES.brokers()
}

/// Starts a dedicated broker, which the test may break.
pub(crate) async fn own_kafka(options: KafkaOptions) -> Kafka {
    tokio::task::spawn_blocking(|| Kafka::start(options))
        .await
        .expect("the task does not panic")
        .expect("a broker of its own")
}

/// Starts a dedicated server, which the test may break.
pub(crate) async fn own_postgres(options: PostgresOptions) -> Postgres {
    tokio::task::spawn_blocking(|| Postgres::start(options))
        .await
        .expect("the task does not panic")
        .expect("a server of its own")
}

/// Creates an empty database on the shared server.
pub(crate) async fn database() -> TestDatabase {
    database_on(&SERVICES.database_url()).await
}

/// Creates an empty database on the server of this URL.
async fn database_on(server_url: &str) -> TestDatabase {
    made_of(server_url, "template1").await
}

/// Creates a database on the server of this URL as a copy of `template`.
async fn made_of(server_url: &str, template: &str) -> TestDatabase {
    let server: PgConnectOptions = server_url.parse().expect("a postgres:// URL");
    let name = format!("tidings_test_{}", Uuid::now_v7().simple());
    let mut admin = server.connect().await.expect("the server answers");
    sqlx::query(AssertSqlSafe(format!(
        "create database {name} template {template}"
    )))
    .execute(&mut admin)
    .await
    .expect("a database can be created");
    admin.close().await.expect("the connection closes");
    let options = server.clone().database(&name);
    let mut url: url::Url = server_url.parse().expect("a URL");
    url.set_path(&name);
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .connect_with(options)
        .await
        .expect("the new database answers");
    let mark = mark(&pool, "tidings").await;
    TestDatabase {
        pool,
        url: url.to_string(),
        mark,
        name,
        server,
    }
}

/// Returns the mark of a schema in this database: 64-bit FNV-1a over system identifier, database
/// and schema, folded to 32 bits.
pub(crate) async fn mark(pool: &PgPool, schema: &str) -> String {
    let sql = "select system_identifier || '/' || (select oid from pg_database \
        where datname = current_database()) from pg_control_system()";
    let identity: String = sqlx::query_scalar(sql)
        .fetch_one(pool)
        .await
        .expect("the server returns its identity");
    let byte = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = format!("{identity}/{schema}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, byte);
    format!("{:08x}", (hash >> 32) as u32 ^ hash as u32)
}

/// Creates a database with the tables of Tidings.
pub(crate) async fn migrated_database() -> TestDatabase {
    let database = database().await;
    tidings::migrate(&database.pool)
        .await
        .expect("an empty database can be migrated");
    database
}

/// Creates a database on the same server from a dump of `original`. Returns `None` if the machine
/// has no `pg_dump` for this server.
pub(crate) async fn restored(original: &TestDatabase) -> Option<TestDatabase> {
    restored_on(original, &original.url).await
}

/// Creates a database on the server of this URL from a dump of `original`. Returns `None` if the
/// machine has no `pg_dump` for the server of `original`.
pub(crate) async fn restored_on(original: &TestDatabase, server_url: &str) -> Option<TestDatabase> {
    let dump = Command::new("pg_dump")
        .arg(&original.url)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let copy = database_on(server_url).await;
    let mut restore = Command::new("psql");
    restore
        .args(["-v", "ON_ERROR_STOP=1", "-q", &copy.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut restoring = restore.spawn().ok()?;
    restoring
        .stdin
        .take()
        .expect("a pipe")
        .write_all(&dump.stdout)
        .expect("`psql` reads the dump");
    assert!(restoring.wait().expect("the process ends").success());
    Some(copy)
}

/// Creates a database with the tables of Tidings and this text encoding.
pub(crate) async fn encoded_database(encoding: &str) -> TestDatabase {
    let database = made_of(
        &SERVICES.database_url(),
        &format!("template0 encoding '{encoding}' lc_collate 'C' lc_ctype 'C'"),
    )
    .await;
    tidings::migrate(&database.pool)
        .await
        .expect("an empty database can be migrated");
    database
}

/// Creates a database with the tables of Tidings on the server of this URL.
pub(crate) async fn migrated_database_on(server_url: &str) -> TestDatabase {
    let database = database_on(server_url).await;
    tidings::migrate(&database.pool)
        .await
        .expect("an empty database can be migrated");
    database
}

impl TestDatabase {
    /// Copies this database on the same server. Ends the sessions of its pool, because a template
    /// must have none.
    pub(crate) async fn copy(&self) -> TestDatabase {
        let sql = "select pg_terminate_backend(pid, 5000) from pg_stat_activity \
            where datname = current_database() and pid <> pg_backend_pid()";
        let mut session = self.pool.acquire().await.expect("a session").detach();
        sqlx::query(sql)
            .execute(&mut session)
            .await
            .expect("the statement succeeds");
        session.close().await.expect("the connection closes");
        made_of(&self.url, &self.name).await
    }

    /// Returns a pool of another role on this database, for tests of rights.
    pub(crate) async fn pool_as(&self, role: &str) -> PgPool {
        let options = self
            .server
            .clone()
            .database(&self.name)
            .username(role)
            .password("secret");
        PgPoolOptions::new()
            .max_connections(2)
            .connect_with(options)
            .await
            .expect("the role may connect")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (name, server) = (self.name.clone(), self.server.clone());
        // Use a separate thread, because a runtime cannot be entered from within the runtime of the
        // test.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(sqlx::Error::Io)?;
            runtime.block_on(async {
                let mut admin = server.connect().await?;
                // A slot would prevent the drop of its database.
                let drop_slots = "select pg_terminate_backend(active_pid, 5000), \
                    pg_drop_replication_slot(slot_name) from pg_replication_slots \
                    where database = $1";
                let _ = sqlx::query(drop_slots)
                    .bind(&name)
                    .execute(&mut admin)
                    .await;
                sqlx::query(AssertSqlSafe(format!(
                    "drop database if exists {name} with (force)"
                )))
                .execute(&mut admin)
                .await?;
                admin.close().await
            })
        });
        // A database that cannot be dropped does not fail the test.
        drop(dropping.join());
    }
}
