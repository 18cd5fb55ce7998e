//! Functions of other roles that match a call of Tidings as well as the server's own, or better:
//! none is ever called.

use std::time::Duration;

use sqlx::PgPool;
use tidings::health::{Check as _, RelayLagCheck, Status};
use tidings::relay::{RetentionOptions, SourceKind};
use tidings::saga::Sagas;
use tidings::subscriber::{Event, HandlerError, Inbox, Retry, Tx};
use tidings::{Migrations, Outbox};

use crate::support::place::{self as subscriber, Changed, create_effects, start, until_effects};
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, database, migrated_database};

/// Server functions that Tidings calls. Each is also created in `public` with the same parameters.
const NAMES: &str = "now clock_timestamp statement_timestamp hashtextextended
    pg_advisory_xact_lock pg_try_advisory_xact_lock pg_try_advisory_lock make_interval left
    cardinality min max unnest
    pg_current_xact_id pg_current_snapshot pg_current_wal_insert_lsn pg_current_wal_flush_lsn
    pg_snapshot_xmin pg_snapshot_xmax pg_visible_in_snapshot current_setting set_config
    pg_is_in_recovery to_regnamespace to_regclass quote_ident pg_backend_pid pg_wal_lsn_diff
    pg_terminate_backend row_security_active pg_get_serial_sequence current_database
    has_table_privilege starts_with";

/// Creates each function, and a variant that matches a call with an integer literal better than the
/// server's own. Each raises an error when it is called.
const TRAPS: &str = r#"
    create function public.trapped(name text) returns void language plpgsql
        as $f$ begin raise exception 'TRAPPED in %', name; end $f$;
    do $do$
    declare f record;
    begin
        for f in
            select distinct on (p.proname, pg_get_function_identity_arguments(p.oid))
                   p.proname as name, pg_get_function_arguments(p.oid) as arguments,
                   pg_get_function_result(p.oid) as result
            from pg_proc p
            where p.pronamespace = 'pg_catalog'::regnamespace
              and p.proname = any (regexp_split_to_array($names$NAMES$names$, '\s+'))
              and pg_get_function_arguments(p.oid) !~ 'any|internal|VARIADIC'
              and pg_get_function_result(p.oid) !~ 'any|internal|trigger|TABLE'
        loop
            execute format('create function public.%I(%s) returns %s language plpgsql
                            as $f$ begin perform public.trapped(%L); end $f$',
                           f.name, f.arguments, f.result, f.name);
        end loop;
    end $do$;
    create function public.hashtextextended(text, integer) returns bigint language plpgsql
        as $f$ begin perform public.trapped('hashtextextended'); end $f$;
    create function public.unnest(text[]) returns setof text language plpgsql
        as $f$ begin perform public.trapped('unnest'); end $f$;
    create function public.traps() returns bigint language sql
        as 'select count(*) from pg_proc where pronamespace = ''public''::regnamespace';
"#;

/// Returns a pool whose sessions search `public` before the server's own schema.
async fn trapped(database: &TestDatabase) -> PgPool {
    let name: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    sqlx::raw_sql(sqlx::AssertSqlSafe(TRAPS.replace("NAMES", NAMES)))
        .execute(&database.pool)
        .await
        .expect("the traps are set");
    let traps: i64 = sqlx::query_scalar("select public.traps()")
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert!(traps > 50, "{traps} traps");
    let sql = format!("alter database {name} set search_path = public, pg_catalog");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&database.pool)
        .await
        .expect("the statement succeeds");
    let options = database.url.parse().expect("a URL");
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(8)
        .connect_with(options)
        .await
        .expect("a new session");
    let error = sqlx::query("select now()")
        .execute(&pool)
        .await
        .expect_err("the function is a trap")
        .to_string();
    assert!(error.contains("TRAPPED"), "{error}");
    pool
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_and_every_command_call_the_servers_own_functions() {
    for source in [SourceKind::Wal, SourceKind::Poll] {
        let database = migrated_database().await;
        let place = Place::new(&database);
        trapped(&database).await;
        let mut options = place.options();
        options.source = source;
        options.retention = RetentionOptions {
            enabled: true,
            keep: Duration::from_secs(1),
            ..options.retention
        };
        let relay = Running::start(options);
        relay.says("lease", "leads").await;
        let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
            values ('order', '1', 'T', '1')";
        let later = "insert into tidings.scheduled (aggregatetype, aggregateid, type, payload, \
            due_at) values ('order', '1', 'T', '2', pg_catalog.now())";
        for sql in [insert, later] {
            sqlx::query(sql)
                .execute(&database.pool)
                .await
                .expect("the insert succeeds");
        }
        place.reader().until_distinct(2);
        relay
            .says(
                "stream",
                if source == SourceKind::Wal {
                    "streaming"
                } else {
                    ""
                },
            )
            .await;
        for arguments in [
            &["status", "--json"][..],
            &["check"],
            &["relay", "list"],
            &["topics", "list"],
            &["parked", "list"],
            &["sagas", "list"],
            &["migrate"],
            &["parked", "retry", "--all"],
        ] {
            let (_, text) = place.command(arguments);
            assert!(
                !text.contains("TRAPPED") && !text.contains("panicked"),
                "{arguments:?}: {text}"
            );
        }
        relay.stop().await;
        for arguments in [
            &["relay", "rewind", "--all", "--yes"][..],
            &["relay", "skip", "--all", "--yes"],
            &["relay", "forget", &place.name, "--yes"],
        ] {
            let (code, text) = place.command(arguments);
            assert!(
                code == 0 && !text.contains("TRAPPED"),
                "{arguments:?}: {code} {text}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_on_its_own_search_path_calls_the_servers_own_functions() {
    let database = database().await;
    let pool = trapped(&database).await;
    Migrations::new()
        .run(&pool)
        .await
        .expect("the migration succeeds");
    assert!(
        Migrations::new()
            .pending(&pool)
            .await
            .expect("the query succeeds")
            .is_empty()
    );
    let mut conn = pool.acquire().await.expect("a connection");
    for outbox in [Outbox::new(), Outbox::new().serialize_aggregates()] {
        let event = |version| Changed {
            account: "a1".into(),
            version,
        };
        let mut tx = sqlx::Connection::begin(&mut *conn)
            .await
            .expect("a transaction begins");
        outbox
            .publish(&mut tx, &event(1))
            .await
            .expect("the event is published");
        outbox
            .publish_all(&mut tx, &[event(2), event(3)])
            .await
            .expect("the event is published");
        let later = outbox
            .publish_after(&mut tx, &event(4), Duration::from_secs(60))
            .await
            .expect("the event is scheduled");
        assert!(
            outbox
                .cancel(&mut tx, later)
                .await
                .expect("the event can be cancelled")
        );
        tx.commit().await.expect("the commit succeeds");
    }
    drop(conn);
    let lag = RelayLagCheck::new(&pool, "none", Duration::from_secs(1))
        .check()
        .await;
    assert!(
        matches!(&lag, Status::Failing(text) if text.contains("no relay with the name")),
        "{lag:?}"
    );
    let sagas = Sagas::new(pool.clone());
    assert!(
        sagas
            .list(None, &[], 5)
            .await
            .expect("the relay is listed")
            .is_empty()
    );
    assert_eq!(
        sagas
            .find("order", "1")
            .await
            .expect("the saga can be read")
            .map(|run| run.id),
        None
    );
    // A subscriber whose first attempt of each account fails, so that events are parked and
    // retried.
    let place = subscriber::Place::new(1).await;
    create_effects(&pool).await;
    place.publish(3, 1..=4).await;
    let running = start!(
        place
            .subscriber::<()>()
            .on(fail_once)
            .retry(Retry::never())
            .inbox(Inbox::new(pool.clone()).keep(Duration::from_secs(3600)))
    );
    until_effects(&database.pool, 12).await;
    running.stop().await;
}

async fn fail_once(
    Event(changed): Event<Changed>,
    meta: tidings::subscriber::Meta,
    mut tx: Tx,
) -> Result<(), HandlerError> {
    if changed.version == 1 && meta.attempt() == 1 {
        return Err(HandlerError::retry("the first attempt"));
    }
    subscriber::effect(&mut tx, &changed, &meta).await
}
