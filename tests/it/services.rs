//! What every test starts from: a database of its own.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool};
use uuid::Uuid;

/// A database of one test, gone when this is dropped.
pub(crate) struct TestDatabase {
    pub(crate) pool: PgPool,
    pub(crate) url: String,
    name: String,
    server: PgConnectOptions,
}

/// The server under test.
fn server_url() -> String {
    // The one place to start the dev services, once they are there.
    std::env::var("DATABASE_URL").expect("DATABASE_URL names a Postgres server on which databases can be created")
}

/// An empty database.
pub(crate) async fn database() -> TestDatabase {
    let server: PgConnectOptions = server_url().parse().expect("DATABASE_URL is a postgres:// URL");
    let name = format!("tidings_test_{}", Uuid::now_v7().simple());
    let mut admin = server.connect().await.expect("the server of DATABASE_URL answers");
    sqlx::query(AssertSqlSafe(format!("create database {name}"))).execute(&mut admin).await.expect("a database can be created");
    admin.close().await.expect("the connection closes");
    let options = server.clone().database(&name);
    let url = options.to_url_lossy().to_string();
    let pool = PgPoolOptions::new().max_connections(8).connect_with(options).await.expect("the new database answers");
    TestDatabase { pool, url, name, server }
}

/// A database with the tables of Tidings.
pub(crate) async fn migrated_database() -> TestDatabase {
    let database = database().await;
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
                sqlx::query(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).execute(&mut admin).await?;
                admin.close().await
            })
        });
        // A database that stays behind is no reason to fail a test.
        drop(dropping.join());
    }
}
