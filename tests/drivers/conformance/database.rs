//! A migrated database for each test, on a server that starts once.

use std::sync::LazyLock;

use dev_services::{Postgres, PostgresOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgPool, postgres::PgConnectOptions};
use uuid::Uuid;

static SERVER: LazyLock<Postgres> = LazyLock::new(|| {
    Postgres::start(PostgresOptions::new()).unwrap_or_else(|error| panic!("{error}"))
});

/// A database of one test.
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) pool: PgPool,
}

/// A row of the outbox or of the schedule.
#[derive(Debug, PartialEq, sqlx::FromRow)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) aggregatetype: String,
    pub(crate) aggregateid: String,
    pub(crate) r#type: String,
    pub(crate) version: i32,
    /// JSON as it was sent, byte for byte.
    pub(crate) payload: Option<String>,
    pub(crate) payload_bytes: Option<Vec<u8>>,
    pub(crate) headers: String,
    /// Microseconds since 1970.
    pub(crate) occurred_at: Option<i64>,
    pub(crate) topic: Option<String>,
}

impl Database {
    pub(crate) async fn new() -> Self {
        let server = tokio::task::spawn_blocking(|| SERVER.url()).await;
        let server: PgConnectOptions = server.expect("a server").parse().expect("a URL");
        let name = format!("drivers_{}", Uuid::now_v7().simple());
        let mut admin = server.connect().await.expect("the server answers");
        sqlx::query(AssertSqlSafe(format!("create database {name}")))
            .execute(&mut admin)
            .await
            .expect("a database can be created");
        let pool = PgPool::connect_with(server.clone().database(&name))
            .await
            .expect("the database answers");
        tidings::migrate(&pool).await.expect("the migrations apply");
        let (base, _) = SERVER
            .url()
            .rsplit_once('/')
            .map(|(base, end)| (base.to_owned(), end.to_owned()))
            .expect("a path");
        Self {
            url: format!("{base}/{name}"),
            pool,
        }
    }

    /// Returns the rows of a table, ordered as they were inserted.
    pub(crate) async fn rows(&self, table: &str) -> Vec<Row> {
        let order = if table == "outbox" { "seq" } else { "due_at" };
        let sql = format!(
            "select id, aggregatetype, aggregateid, type, version, payload::text as payload,
                    payload_bytes, headers::text as headers,
                    (extract(epoch from occurred_at) * 1000000)::bigint as occurred_at, topic
             from tidings.{table} order by {order}"
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .fetch_all(&self.pool)
            .await
            .expect("the query succeeds")
    }

    pub(crate) async fn ids(&self) -> Vec<Uuid> {
        self.rows("outbox")
            .await
            .into_iter()
            .map(|row| row.id)
            .collect()
    }

    /// Returns the number of advisory locks that sessions of this database hold.
    pub(crate) async fn advisory_locks(&self) -> i64 {
        sqlx::query_scalar(
            "select count(*) from pg_locks where locktype = 'advisory' and database =
             (select oid from pg_database where datname = current_database())",
        )
        .fetch_one(&self.pool)
        .await
        .expect("the query succeeds")
    }
}
