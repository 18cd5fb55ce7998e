//! Readiness, stalls, and servers that accept a connection and never answer.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dev_services::{KafkaOptions, PostgresOptions, Proxy};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool};
use tidings::{
    postgres,
    relay::{CheckState, RelayOptions, SourceKind},
};

use crate::support::eventually::{PATIENCE, eventually};
use crate::support::history::{
    Verdict, caught_up, create_accounts, with_accounts, write_concurrently,
};
use crate::support::rights::run;
use crate::support::running::{Place, Running};
use crate::support::services::{
    TestDatabase, migrated_database, migrated_database_on, own_kafka, own_postgres,
};

impl Running {
    fn failing(&self) -> Vec<String> {
        let failing = |state| {
            if let CheckState::Failing(text) = state {
                Some(text)
            } else {
                None
            }
        };
        self.observer
            .checks()
            .into_iter()
            .filter_map(|check| Some(format!("{}: {}", check.name, failing(check.state)?)))
            .collect()
    }

    async fn until(&self, what: &str, holds: impl Fn(&[String]) -> bool) {
        eventually(what, async || {
            let holds = holds(&self.failing());
            holds.then_some(()).ok_or_else(|| self.observer.checks())
        })
        .await;
    }

    async fn until_delivery_is_reported(&self) {
        let reports = || {
            let metrics = self.observer.metrics_text();
            metrics.contains("tidings_relay_published_total{")
                && metrics.contains("tidings_relay_in_flight_events 0")
        };
        self.until("delivery is reported", |_| reports()).await;
    }

    async fn until_ready(&self) {
        self.until("ready", <[String]>::is_empty).await;
    }

    async fn until_failing(&self, text: &str) {
        self.until(text, |failing| failing.iter().any(|one| one.contains(text)))
            .await;
    }

    /// Drains and ends the relay within a time limit.
    async fn stop_in_time(self) {
        tokio::time::timeout(PATIENCE, self.stop())
            .await
            .expect("the relay stops");
    }
}

fn impatient(place: &Place) -> RelayOptions {
    let mut options = place.options();
    options.stall_after = Duration::from_secs(2);
    options
}

fn with_url(mut options: RelayOptions, url: &str) -> RelayOptions {
    options.database = postgres::DatabaseSettings::parse(url).expect("a URL");
    options
}

fn through(database: &TestDatabase, address: SocketAddr) -> String {
    let mut url: url::Url = database.url.parse().expect("a URL");
    url.set_host(Some("127.0.0.1")).expect("a host");
    url.set_port(Some(address.port())).expect("a port");
    url.to_string()
}

fn address_of(database: &TestDatabase) -> SocketAddr {
    let url: url::Url = database.url.parse().expect("a URL");
    SocketAddr::from(([127, 0, 0, 1], url.port().expect("a port")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_waits_for_a_topic_is_never_ready_meanwhile() {
    let (database, place) = with_accounts(3).await;
    let mut options = place.options();
    options.topics.create = false;
    let relay = Running::start(options);
    relay.until_ready().await;
    write_concurrently(&database.pool, 1, 3, 10).await;
    let missing = format!("kafka: topic `{}` does not exist", place.topic);
    relay.until_failing(&missing).await;
    for _ in 0..100 {
        assert!(
            relay
                .failing()
                .iter()
                .any(|reason| reason.starts_with(&missing)),
            "{:?}",
            relay.observer.checks()
        );
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    crate::support::records::create_topic(&place.brokers, &place.topic, 2).await;
    relay.until_ready().await;
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

/// The broker accepts everything and acknowledges nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_broker_acknowledges_nothing_is_not_ready_and_counts_for_how_long() {
    let mut kafka = own_kafka(KafkaOptions::new()).await;
    let database = migrated_database().await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    create_accounts(&database.pool, 3).await;
    let relay = Running::start(impatient(&place));
    write_concurrently(&database.pool, 1, 3, 10).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    // The first report of delivery: a stall that is seen from now on began after it.
    relay.until_delivery_is_reported().await;
    relay.until_ready().await;
    kafka.pause().expect("the broker is paused");
    write_concurrently(&database.pool, 1, 3, 10).await;
    // Match only stalls with waiting events, because a slow machine may take more than two seconds
    // to see that nothing is pending.
    let stalls = |reason: &String| {
        reason.starts_with("progress: nothing was acknowledged for")
            && (reason.contains("are in flight") || reason.contains("an event waits"))
    };
    relay
        .until("stalled", |failing| failing.iter().any(stalls))
        .await;
    for _ in 0..50 {
        assert!(
            relay
                .failing()
                .iter()
                .any(|reason| reason.starts_with("progress: ")),
            "{:?}",
            relay.observer.checks()
        );
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let metrics = relay.observer.metrics_text();
    let stalled = metrics.lines().find_map(|line| {
        line.strip_prefix("tidings_relay_stalled_seconds ")?
            .parse::<f64>()
            .ok()
    });
    assert!(stalled.is_some_and(|seconds| seconds >= 2.0), "{stalled:?}");
    kafka.resume().expect("the broker resumes");
    relay.until_ready().await;
    assert!(
        relay
            .observer
            .metrics_text()
            .contains("tidings_relay_stalled_seconds 0.0")
    );
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}

/// The session hangs before it streams.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_broker_hangs_from_the_start_is_not_ready_and_stops_when_told_to() {
    let mut kafka = own_kafka(KafkaOptions::new()).await;
    let database = migrated_database().await;
    let place = Place {
        brokers: kafka.brokers(),
        ..Place::new(&database)
    };
    kafka.pause().expect("the broker is paused");
    let relay = Running::start(impatient(&place));
    relay
        .until_failing("progress: nothing was acknowledged for")
        .await;
    assert!(
        relay
            .failing()
            .iter()
            .any(|reason| reason.starts_with("kafka: ")),
        "{:?}",
        relay.observer.checks()
    );
    relay.stop_in_time().await;
    kafka.resume().expect("the broker resumes");
}

/// Answer of a walsender behind a [`Muted`] wire to START_REPLICATION.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Nothing,
    /// CopyBothResponse, and nothing after it.
    CopyBoth,
}

/// A wire to Postgres that forwards no further answer once a stream is requested.
struct Muted(SocketAddr);

impl Muted {
    fn to(server: SocketAddr, answer: Answer) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("the listener has an address");
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(server).expect("the server answers");
                let muted = Arc::new(AtomicBool::new(false));
                let (to_server, to_client) = (
                    server.try_clone().expect("the value can be cloned"),
                    client.try_clone().expect("the value can be cloned"),
                );
                let asked = muted.clone();
                std::thread::spawn(move || {
                    pump(client, to_server, |bytes| {
                        if bytes.windows(17).any(|word| word == b"START_REPLICATION") {
                            asked.store(true, Ordering::SeqCst);
                        }
                        bytes.len()
                    })
                });
                let mut left = if answer == Answer::CopyBoth { 8 } else { 0 };
                std::thread::spawn(move || {
                    pump(server, to_client, |bytes| {
                        if !muted.load(Ordering::SeqCst) {
                            return bytes.len();
                        }
                        let passed = bytes.len().min(left);
                        left -= passed;
                        passed
                    })
                });
            }
        });
        Self(address)
    }
}

/// Forwards bytes. `passes` returns the number of bytes to forward from each read.
fn pump(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> usize) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let passed = passes(&bytes[..count]);
        if to.write_all(&bytes[..passed]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

async fn a_silent_stream_is_reported_and_ended(answer: Answer) {
    let (database, place) = with_accounts(3).await;
    let wire = Muted::to(address_of(&database), answer);
    let mut options = with_url(impatient(&place), &through(&database, wire.0));
    options.source = SourceKind::Wal;
    let relay = Running::start(options);
    relay
        .until("connected", |failing| {
            !failing.iter().any(|one| one.starts_with("lease"))
        })
        .await;
    write_concurrently(&database.pool, 1, 3, 10).await;
    relay
        .until_failing("progress: nothing was acknowledged for")
        .await;
    relay.until_failing("does not answer with a").await;
    relay.stop_in_time().await;
    // Nothing is lost: all events arrive without the wire.
    let relay = place.start();
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_start_replication_is_reported_and_does_not_keep_the_relay() {
    a_silent_stream_is_reported_and_ended(Answer::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_streams_nothing_is_reported_and_does_not_keep_the_relay() {
    a_silent_stream_is_reported_and_ended(Answer::CopyBoth).await;
}

/// The relay reads the table instead.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_server_does_not_stream_publishes_from_the_table() {
    let (database, place) = with_accounts(3).await;
    let wire = Muted::to(address_of(&database), Answer::Nothing);
    let relay = Running::start(with_url(place.options(), &through(&database, wire.0)));
    relay.until_failing("does not answer with a stream").await;
    write_concurrently(&database.pool, 1, 3, 10).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    relay.until_ready().await;
    relay.stop_in_time().await;
}

/// The database hangs from the start, then answers, then hangs while the relay works.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_makes_a_relay_not_ready_and_does_not_keep_it() {
    let (database, place) = with_accounts(3).await;
    let wire = Proxy::to(address_of(&database)).expect("a proxy");
    wire.stall();
    let url = format!("{}?connect_timeout=2", through(&database, wire.address()));
    let relay = Running::start(with_url(impatient(&place), &url));
    relay
        .until_failing("database: connecting to Postgres")
        .await;
    relay.until_failing("progress: ").await;
    wire.resume();
    write_concurrently(&database.pool, 1, 3, 10).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    relay.until_ready().await;
    wire.stall();
    write_concurrently(&database.pool, 1, 3, 10).await;
    relay.until_failing("progress: ").await;
    // Nothing is in flight, so the relay ends cleanly.
    relay.stop_in_time().await;
    wire.resume();
    let relay = place.start();
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_held_by_a_role_that_runs_no_relay_is_a_fault() {
    let (database, place) = with_accounts(3).await;
    let role = format!("r{}", uuid::Uuid::now_v7().simple());
    run(
        &database.pool,
        format!("create role {role} login password 'secret'"),
    )
    .await;
    let pool = database.pool_as(&role).await;
    let mut foreign = pool.acquire().await.expect("a connection");
    let lock = format!(
        "select pg_advisory_lock(hashtextextended('tidings relay tidings.{}', 0))",
        place.name
    );
    // A session with the application name of a relay is still not a relay.
    let name = format!(
        "set application_name = 'tidings lease {} host:1'",
        place.name
    );
    foreign
        .execute(AssertSqlSafe(name))
        .await
        .expect("the statement succeeds");
    foreign
        .execute(AssertSqlSafe(lock.clone()))
        .await
        .expect("the statement succeeds");
    let relay = Running::start(impatient(&place));
    relay
        .until_failing(&format!("(role {role}, application `tidings lease"))
        .await;
    relay.until_failing("progress: ").await;
    drop(foreign);
    pool.close().await;
    relay.until_ready().await;
    // A relay that waits for another relay is ready.
    let standby = Running::start(impatient(&place));
    standby.says("lease", "standing by").await;
    standby.until_ready().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(standby.failing(), Vec::<String>::new());
    standby.stop_in_time().await;
    write_concurrently(&database.pool, 1, 3, 10).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
    run(&database.pool, format!("drop role {role}")).await;
}

/// The holder is a superuser's session and not a relay.
#[tokio::test(flavor = "multi_thread")]
async fn status_names_a_foreign_holder_of_a_lease() {
    let (database, place) = with_accounts(1).await;
    let relay = place.start();
    relay.until_ready().await;
    relay.stop_in_time().await;
    let mut foreign = database.pool.acquire().await.expect("a connection");
    let lock = format!(
        "select pg_advisory_lock(hashtextextended('tidings relay tidings.{}', 0))",
        place.name
    );
    foreign
        .execute(AssertSqlSafe(lock))
        .await
        .expect("the statement succeeds");
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["status", "--database-url", &database.url])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&status.stdout);
    assert!(
        text.contains("holds the lock of its lease but is not a relay")
            && !text.contains("not running"),
        "{text}"
    );
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url)
        .await
        .expect("the server answers")
}

async fn end_sessions(admin: &mut PgConnection, database: &str) {
    let sql = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    sqlx::query(sql)
        .bind(database)
        .execute(admin)
        .await
        .expect("the statement succeeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_takes_no_connections_for_a_while_is_waited_for() {
    let postgres = own_postgres(PostgresOptions::new()).await;
    let database = migrated_database_on(&postgres.url()).await;
    let place = Place::new(&database);
    create_accounts(&database.pool, 3).await;
    let relay = place.start();
    write_concurrently(&database.pool, 1, 3, 10).await;
    let mut reader = place.reader();
    caught_up(&database.pool, &mut reader).await;
    relay.says("stream", "streaming").await;
    let name = database.url.rsplit('/').next().expect("a name").to_owned();
    let mut admin = connect(&postgres.url()).await;
    for (no, yes, code) in [
        (
            format!("alter database {name} allow_connections false"),
            format!("alter database {name} allow_connections true"),
            "55000",
        ),
        (
            format!("alter database {name} rename to {name}_x"),
            format!("alter database {name}_x rename to {name}"),
            "3D000",
        ),
    ] {
        if code == "3D000" {
            // A database with sessions cannot be renamed.
            run_alone(&mut admin, &name, &no).await;
        } else {
            admin
                .execute(AssertSqlSafe(no))
                .await
                .expect("the statement succeeds");
            end_sessions(&mut admin, &name).await;
        }
        relay
            .until("waiting", |failing| {
                failing
                    .iter()
                    .any(|one| one.contains("connecting to Postgres"))
            })
            .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        admin
            .execute(AssertSqlSafe(yes))
            .await
            .expect("the statement succeeds");
        relay.until_ready().await;
    }
    write_concurrently(&database.pool, 1, 3, 10).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut reader).await,
        Verdict::default()
    );
}

/// Ends the sessions of the database until the statement succeeds. The statement requires that
/// there are none.
async fn run_alone(admin: &mut PgConnection, database: &str, sql: &str) {
    eventually(&format!("alone: {sql}"), async || {
        end_sessions(admin, database).await;
        admin.execute(AssertSqlSafe(sql.to_owned())).await
    })
    .await;
}

/// Creates a role of one test that owns the tables. Returns the role and the URL of a relay with
/// it.
async fn owner(database: &TestDatabase) -> (String, String) {
    let role = format!("r{}", uuid::Uuid::now_v7().simple());
    let name = database.url.rsplit('/').next().expect("a name");
    for sql in [
        format!("create role {role} login replication password 'secret'"),
        format!("grant create on database {name} to {role}"),
        format!("grant usage on schema tidings to {role}"),
        format!("grant all on all tables in schema tidings to {role}"),
    ] {
        run(&database.pool, sql).await;
    }
    run(
        &database.pool,
        format!("alter table tidings.outbox owner to {role}"),
    )
    .await;
    let mut url: url::Url = database.url.parse().expect("a URL");
    url.set_username(&role).expect("a name");
    url.set_password(Some("secret")).expect("a password");
    (role, url.to_string())
}

async fn forget_owner(pool: &PgPool, role: &str) {
    run(
        pool,
        format!("reassign owned by {role} to current_user; drop owned by {role}; drop role {role}"),
    )
    .await;
}

/// The limit comes from the role, which may have three connections, and not from a pooler.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_too_few_connections_names_how_many_it_needs() {
    let (database, place) = with_accounts(3).await;
    let (role, url) = owner(&database).await;
    run(
        &database.pool,
        format!("alter role {role} connection limit 3"),
    )
    .await;
    let relay = Running::start(with_url(place.options(), &url));
    relay
        .until_failing("only 3 of the 5 connections to the database that a relay needs")
        .await;
    for _ in 0..50 {
        assert!(!relay.failing().is_empty());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    run(
        &database.pool,
        format!("alter role {role} connection limit -1"),
    )
    .await;
    write_concurrently(&database.pool, 1, 3, 10).await;
    caught_up(&database.pool, &mut place.reader()).await;
    relay.until_ready().await;
    relay.stop_in_time().await;
    forget_owner(&database.pool, &role).await;
}

/// The password is changed and restored while the relay runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_had_access_outlives_a_role_that_may_not_log_in_for_a_moment() {
    let (database, place) = with_accounts(3).await;
    let (role, url) = owner(&database).await;
    let relay = Running::start(with_url(place.options(), &url));
    relay.until_ready().await;
    run(&database.pool, format!("alter role {role} nologin")).await;
    run(
        &database.pool,
        format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'"),
    )
    .await;
    relay.until_failing("check user and password").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    run(&database.pool, format!("alter role {role} login")).await;
    write_concurrently(&database.pool, 1, 3, 10).await;
    caught_up(&database.pool, &mut place.reader()).await;
    relay.until_ready().await;
    relay.stop_in_time().await;
    forget_owner(&database.pool, &role).await;
}
