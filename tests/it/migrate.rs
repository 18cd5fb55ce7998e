//! Creation and migration of the tables.

use sqlx::{AssertSqlSafe, PgPool, Row};
use tidings::{MigrateError, Migrations, Outbox};
use uuid::Uuid;

use crate::support::services::{database, migrated_database};

async fn tables(pool: &PgPool, schema: &str) -> Vec<String> {
    sqlx::query_scalar("select tablename::text from pg_tables where schemaname = $1 order by 1")
        .bind(schema)
        .fetch_all(pool)
        .await
        .expect("the catalog can be read")
}

async fn execute(pool: &PgPool, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into()))
        .execute(pool)
        .await
        .expect("the statement is accepted");
}

#[tokio::test]
async fn migrating_creates_the_tables_once_and_then_has_nothing_to_do() {
    let database = database().await;
    let migrations = Migrations::new();
    let steps = migrations
        .pending(&database.pool)
        .await
        .expect("an empty database can be queried");
    assert_eq!(
        steps.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "1 outbox",
            "2 relay",
            "3 inbox",
            "10 parked",
            "11 operation",
            "12 relay table",
            "20 sagas",
            "21 scheduled",
            "22 open sagas",
            "23 inbox collation",
            "24 reserved",
            "25 relay secret",
            "26 outbox guards",
            "28 relay names",
            "32 parked ranges",
            "35 detour attempts",
            "36 inbox topic",
            "37 subscriber",
            "38 relay event source",
            "39 saga code",
            "40 detour correlation",
            "41 subscriber parked",
            "42 subscriber parked keys",
            "43 verification",
            "45 subscriber control"
        ]
    );
    assert!(
        tables(&database.pool, "tidings").await.is_empty(),
        "a query creates nothing"
    );

    assert_eq!(
        migrations
            .run(&database.pool)
            .await
            .expect("the first run succeeds"),
        steps
    );
    let expected = [
        "_tidings_migrations",
        "inbox",
        "inbox_collision",
        "outbox",
        "parked",
        "relay",
        "relay_decision",
        "relay_secret",
        "relay_topic",
        "retention",
        "saga",
        "saga_code",
        "saga_lock",
        "scheduled",
        "subscriber",
        "subscriber_control",
        "subscriber_parked",
    ];
    assert_eq!(tables(&database.pool, "tidings").await, expected);
    assert_eq!(
        migrations
            .pending(&database.pool)
            .await
            .expect("a migrated database can be queried"),
        []
    );
    assert_eq!(
        migrations
            .run(&database.pool)
            .await
            .expect("the second run succeeds"),
        []
    );
    assert!(tables(&database.pool, "public").await.is_empty());
}

#[tokio::test]
async fn a_schema_of_another_name_holds_everything() {
    let database = database().await;
    Migrations::new()
        .schema("billing_events")
        .run(&database.pool)
        .await
        .expect("the schema is created");
    assert_eq!(tables(&database.pool, "billing_events").await.len(), 17);
    assert!(tables(&database.pool, "tidings").await.is_empty());
    let types: Vec<String> = sqlx::query_scalar(
        "select distinct n.nspname::text from pg_class c \
         join pg_namespace n on n.oid = c.relnamespace \
         where c.relkind in ('r', 'i', 'S') and n.nspname not in ('pg_catalog', 'pg_toast', \
         'information_schema')",
    )
    .fetch_all(&database.pool)
    .await
    .expect("the catalog can be read");
    assert_eq!(types, ["billing_events"]);
}

#[tokio::test]
async fn a_schema_name_that_is_not_usable_is_reported_and_nothing_is_created() {
    let database = database().await;
    let migrations = Migrations::new().schema("x\"; drop schema public cascade; --");
    assert!(matches!(
        migrations.run(&database.pool).await,
        Err(MigrateError::Schema(_))
    ));
    let error = migrations
        .pending(&database.pool)
        .await
        .expect_err("the name is not usable");
    assert!(
        error.to_string().contains("start with a lower-case letter"),
        "{error}"
    );
}

#[tokio::test]
async fn the_applications_own_migrations_are_left_alone() {
    let database = database().await;
    execute(
        &database.pool,
        "create table _sqlx_migrations (version bigint primary key, mine text); \
         insert into _sqlx_migrations values (1, 'x')",
    )
    .await;
    Migrations::new()
        .schema("public")
        .run(&database.pool)
        .await
        .expect("both migrators can share a schema");
    let mine: String = sqlx::query_scalar("select mine from _sqlx_migrations")
        .fetch_one(&database.pool)
        .await
        .expect("the row still exists");
    assert_eq!(mine, "x");
}

#[tokio::test]
async fn many_processes_migrating_at_once_migrate_once() {
    let database = database().await;
    let runs = (0..6).map(|_| {
        let pool = database.pool.clone();
        tokio::spawn(async move { Migrations::new().run(&pool).await })
    });
    let mut applied = Vec::new();
    for run in runs.collect::<Vec<_>>() {
        applied.extend(
            run.await
                .expect("the task ends")
                .expect("each run succeeds"),
        );
    }
    assert_eq!(
        applied.iter().map(|step| step.version).collect::<Vec<_>>(),
        [
            1, 2, 3, 10, 11, 12, 20, 21, 22, 23, 24, 25, 26, 28, 32, 35, 36, 37, 38, 39, 40, 41,
            42, 43, 45
        ],
        "one run did all, the others nothing"
    );
}

#[tokio::test]
async fn the_connections_search_path_is_as_before() {
    let database = database().await;
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect(&database.url)
        .await
        .expect("the database answers");
    execute(&pool, "set search_path to public, pg_temp").await;
    tidings::migrate(&pool).await.expect("the run succeeds");
    let path: String = sqlx::query_scalar("show search_path")
        .fetch_one(&pool)
        .await
        .expect("it can be shown");
    assert_eq!(path, "public, pg_temp");
    let locks: i64 = sqlx::query_scalar(
        "select count(*) from pg_locks \
        where locktype = 'advisory' and database = (select oid from pg_database \
        where datname = current_database())",
    )
    .fetch_one(&pool)
    .await
    .expect("locks can be counted");
    assert_eq!(locks, 0);
}

#[tokio::test]
async fn a_role_that_may_not_create_is_told_what_to_grant_and_one_that_need_not_is_let_through() {
    let database = database().await;
    let role = format!("tidings_role_{}", Uuid::now_v7().simple());
    execute(
        &database.pool,
        format!("create role {role} login password 'secret'"),
    )
    .await;
    let limited = database.pool_as(&role).await;

    let error = tidings::migrate(&limited)
        .await
        .expect_err("the role may not create a schema");
    assert!(
        matches!(&error, MigrateError::Permission { .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("grant create on database") && error.to_string().contains(&role),
        "{error}"
    );

    tidings::migrate(&database.pool)
        .await
        .expect("the owner has the right");
    let error = tidings::migrate(&limited)
        .await
        .expect_err("the role may not see what is applied");
    assert!(
        matches!(&error, MigrateError::Unreadable { .. }),
        "{error:?}"
    );
    execute(
        &database.pool,
        format!(
            "grant usage on schema tidings to {role}; \
        grant select on tidings._tidings_migrations to {role}"
        ),
    )
    .await;
    tidings::migrate(&limited)
        .await
        .expect("there is nothing to create");

    limited.close().await;
    execute(
        &database.pool,
        format!("drop owned by {role}; drop role {role}"),
    )
    .await;
}

#[tokio::test]
async fn a_table_of_somebody_else_is_not_taken_for_the_outbox() {
    let database = database().await;
    execute(&database.pool, "create table outbox (id int)").await;
    let error = Migrations::new()
        .schema("public")
        .run(&database.pool)
        .await
        .expect_err("the name is taken");
    assert!(matches!(error, MigrateError::Occupied { .. }), "{error:?}");
    assert_eq!(
        tables(&database.pool, "public").await,
        ["outbox"],
        "nothing is left of the run"
    );
}

#[tokio::test]
async fn a_migration_that_was_applied_with_other_contents_is_reported() {
    let database = migrated_database().await;
    execute(
        &database.pool,
        "update tidings._tidings_migrations set checksum = 'x' where version = 2",
    )
    .await;
    assert!(matches!(
        tidings::migrate(&database.pool).await,
        Err(MigrateError::Changed { version: 2, .. })
    ));
}

#[tokio::test]
async fn an_older_library_starts_beside_a_newer_one() {
    let database = migrated_database().await;
    let newer = "insert into tidings._tidings_migrations (version, description, success, \
        checksum, execution_time) values (999, 'later', true, 'x', 0)";
    execute(&database.pool, newer).await;
    assert_eq!(
        Migrations::new()
            .run(&database.pool)
            .await
            .expect("migration 999 is unknown"),
        []
    );
}

#[tokio::test]
async fn tables_made_by_hand_are_adopted() {
    let database = database().await;
    let by_hand = [
        "create schema if not exists tidings; set local search_path to tidings;",
        include_str!("../../migrations/0001_outbox.sql"),
        include_str!("../../migrations/0002_relay.sql"),
        include_str!("../../migrations/0003_inbox.sql"),
        include_str!("../../migrations/0010_parked.sql"),
        include_str!("../../migrations/0011_operation.sql"),
        include_str!("../../migrations/0012_relay_table.sql"),
        include_str!("../../migrations/0020_sagas.sql"),
        include_str!("../../migrations/0021_scheduled.sql"),
        include_str!("../../migrations/0022_open_sagas.sql"),
        include_str!("../../migrations/0023_inbox_collation.sql"),
        include_str!("../../migrations/0024_reserved.sql"),
        include_str!("../../migrations/0025_relay_secret.sql"),
        include_str!("../../migrations/0026_outbox_guards.sql"),
        include_str!("../../migrations/0028_relay_names.sql"),
        include_str!("../../migrations/0032_parked_ranges.sql"),
        include_str!("../../migrations/0035_detour_attempts.sql"),
        include_str!("../../migrations/0036_inbox_topic.sql"),
        include_str!("../../migrations/0037_subscriber.sql"),
        include_str!("../../migrations/0038_relay_event_source.sql"),
        include_str!("../../migrations/0039_saga_code.sql"),
        include_str!("../../migrations/0040_detour_correlation.sql"),
        include_str!("../../migrations/0041_subscriber_parked.sql"),
        include_str!("../../migrations/0042_subscriber_parked_keys.sql"),
        include_str!("../../migrations/0043_verification.sql"),
        include_str!("../../migrations/0045_subscriber_control.sql"),
    ];
    execute(&database.pool, by_hand.concat()).await;
    execute(
        &database.pool,
        "insert into tidings.outbox (aggregatetype, aggregateid, type) values ('a', '1', 'T')",
    )
    .await;
    let adopted = Migrations::new()
        .run(&database.pool)
        .await
        .expect("the tables fit");
    assert_eq!(
        adopted.len(),
        by_hand.len() - 1,
        "each script but the first line, which only names the schema"
    );
    let rows: i64 = sqlx::query_scalar("select count(*) from tidings.outbox")
        .fetch_one(&database.pool)
        .await
        .expect("the row exists");
    assert_eq!(rows, 1);
    let mut parked = tables(&database.pool, "tidings").await;
    parked.retain(|name| ["detour", "subscriber_parked"].contains(&name.as_str()));
    assert_eq!(parked, ["subscriber_parked"], "one table remains");
}

#[tokio::test]
async fn parked_events_of_an_earlier_version_are_kept() {
    let database = database().await;
    let before = [
        include_str!("../../migrations/0003_inbox.sql"),
        include_str!("../../migrations/0035_detour_attempts.sql"),
        include_str!("../../migrations/0040_detour_correlation.sql"),
    ];
    let prepare = format!(
        "create schema tidings; set local search_path to tidings; {}",
        before.concat()
    );
    execute(&database.pool, prepare).await;
    execute(
        &database.pool,
        "insert into tidings.detour (consumer, topic, partition, record_offset, record_timestamp, key) \
         values ('stock', 'order', 0, 7, 1, 'k')",
    )
    .await;
    Migrations::new()
        .run(&database.pool)
        .await
        .expect("the tables fit");
    let offsets: Vec<i64> =
        sqlx::query_scalar("select record_offset from tidings.subscriber_parked")
            .fetch_all(&database.pool)
            .await
            .expect("the table has its new name");
    assert_eq!(offsets, [7]);
}

#[tokio::test]
async fn the_documented_grants_are_enough_to_publish_and_not_enough_to_number_or_change_events() {
    let database = migrated_database().await;
    let role = format!("tidings_app_{}", Uuid::now_v7().simple());
    execute(
        &database.pool,
        format!("create role {role} login password 'secret'"),
    )
    .await;
    execute(&database.pool, grants_for_app(&role)).await;
    let app = database.pool_as(&role).await;

    let mut conn = app.acquire().await.expect("the role may connect");
    let event = tidings::event::Envelope::tombstone(
        "order",
        tidings::event::AggregateId::new("7").expect("a valid id"),
    );
    let outbox = Outbox::new().allow_autocommit();
    outbox
        .publish_envelope(&mut conn, &event)
        .await
        .expect("the role may publish");
    outbox
        .serialize_aggregates()
        .publish_envelopes(&mut conn, std::slice::from_ref(&event))
        .await
        .expect_err("the id is taken");
    for forbidden in [
        "insert into tidings.outbox (aggregatetype, aggregateid, type, xid) \
         values ('a', '1', 'T', '1')",
        "insert into tidings.outbox (aggregatetype, aggregateid, type, seq) \
         overriding system value values ('a', '1', 'T', 1)",
        "update tidings.outbox set type = 'X'",
        "delete from tidings.outbox",
    ] {
        let error = sqlx::query(forbidden)
            .execute(&mut *conn)
            .await
            .expect_err(forbidden);
        assert_eq!(
            error.as_database_error().and_then(|e| e.code()).as_deref(),
            Some("42501"),
            "{forbidden}"
        );
    }

    drop(conn);
    app.close().await;
    execute(
        &database.pool,
        format!("drop owned by {role}; drop role {role}"),
    )
    .await;
}

/// Returns the grants for `app` from the comment of the migration.
fn grants_for_app(role: &str) -> String {
    let comment = include_str!("../../migrations/0001_outbox.sql")
        .split_once("Least privilege.")
        .expect("the grants are documented")
        .1;
    let sql = comment
        .lines()
        .filter_map(|line| line.strip_prefix("--   "))
        .collect::<Vec<_>>()
        .join("\n");
    let for_app = sql
        .split(';')
        .map(|grant| grant.replace("to app, relay", "to app"))
        .filter(|grant| grant.contains("to app"));
    for_app
        .map(|grant| grant.replace("to app", &format!("to {role}")) + ";")
        .collect()
}

#[tokio::test]
async fn the_table_refuses_what_no_relay_should_have_to_carry() {
    let database = migrated_database().await;
    let insert = "insert into tidings.outbox (aggregatetype, aggregateid, type, payload, \
        payload_bytes, headers, topic, version)";
    let refused = [
        (
            "'', '1', 'T', null, null, '{}', null, 1",
            "outbox_aggregatetype_length",
        ),
        (
            "'a', '', 'T', null, null, '{}', null, 1",
            "outbox_aggregateid_length",
        ),
        (
            "'a', repeat('x', 1025), 'T', null, null, '{}', null, 1",
            "outbox_aggregateid_length",
        ),
        (
            "'a', '1', '', null, null, '{}', null, 1",
            "outbox_type_length",
        ),
        (
            "'a', '1', 'T', '1', '1', '{}', null, 1",
            "outbox_one_payload",
        ),
        (
            "'a', '1', 'T', to_json(repeat('x', 16777215)), null, '{}', null, 1",
            "outbox_payload_size",
        ),
        (
            "'a', '1', 'T', null, convert_to(repeat('x', 16777217), 'UTF8'), '{}', null, 1",
            "outbox_payload_bytes_size",
        ),
        (
            "'a', '1', 'T', null, null, '[]', null, 1",
            "outbox_headers_object",
        ),
        (
            "'a', '1', 'T', null, null, jsonb_build_object('h', repeat('x', 65536)), null, 1",
            "outbox_headers_size",
        ),
        (
            "'a', '1', 'T', null, null, '{}', 'a/b', 1",
            "outbox_topic_name",
        ),
        (
            "'a', '1', 'T', null, null, '{}', '..', 1",
            "outbox_topic_name",
        ),
        (
            "'a', '1', 'T', null, null, '{}', '', 1",
            "outbox_topic_name",
        ),
        (
            "'a', '1', 'T', null, null, '{}', null, 0",
            "outbox_version_positive",
        ),
        (
            "'a', '1', 'T', null, null, '{}', 'tidings.position.other.0123abcd', 1",
            "outbox_topic_reserved",
        ),
        (
            "'a', '1', 'T', null, null, '{}', '__consumer_offsets', 1",
            "outbox_topic_reserved",
        ),
        (
            "'tidings.position.other.0123abcd', '1', 'T', null, null, '{}', null, 1",
            "outbox_aggregatetype_reserved",
        ),
        (
            "'__x', '1', 'T', null, null, '{}', null, 1",
            "outbox_aggregatetype_reserved",
        ),
        (
            "'a', '1', 'T', null, null, '{\"a\": \"1\", \"ce_id\": \"x\"}', null, 1",
            "outbox_headers_reserved",
        ),
        (
            "'a', '1', 'T', null, null, '{\"CE_type\": 1}', null, 1",
            "outbox_headers_reserved",
        ),
        (
            "'a', '1', 'T', null, null, '{\"ce\\u005fsource\": \"x\"}', null, 1",
            "outbox_headers_reserved",
        ),
        (
            "'a', '1', 'T', null, null, '{\"Kafka_dlt-original-topic\": null}', null, 1",
            "outbox_headers_reserved",
        ),
        (
            "'a', '1', 'T', null, null, '{\"tidings_replays\": 1}', null, 1",
            "outbox_headers_reserved",
        ),
        (
            "'a', '1', 'T', null, null, '{\"Content-Type\": \" Application/CloudEvents+json\"}', \
             null, 1",
            "outbox_headers_reserved",
        ),
    ];
    for (values, constraint) in refused {
        let sql = AssertSqlSafe(format!("{insert} values ({values})"));
        let error = sqlx::query(sql)
            .execute(&database.pool)
            .await
            .expect_err(constraint);
        assert_eq!(
            error.as_database_error().and_then(|e| e.constraint()),
            Some(constraint),
            "{values}"
        );
    }
    for time in ["infinity", "-infinity"] {
        for table in [
            "outbox (aggregatetype, aggregateid, type, occurred_at) values",
            "scheduled (due_at, aggregatetype, aggregateid, type, occurred_at) values",
        ] {
            let due = if table.starts_with("scheduled") {
                "now(), "
            } else {
                ""
            };
            let sql = AssertSqlSafe(format!(
                "insert into tidings.{table} ({due}'a', '1', 'T', '{time}')"
            ));
            let error = sqlx::query(sql)
                .execute(&database.pool)
                .await
                .expect_err(time);
            assert_eq!(
                error.as_database_error().and_then(|e| e.constraint()),
                Some("outbox_occurred_at_finite")
            );
        }
    }
    for harmless in [
        "{\"a\": \"ce_id\"}",
        "{\"a\": \"x\\\", \\\"ce_id\\\": 1\"}",
        "{\"content-type\": \"application/json\"}",
        "{\"content-type\": 7}",
        "{\"place_\": \"1\"}",
    ] {
        execute(
            &database.pool,
            format!(
                "{insert} values ('a', '1', 'T', null, null, '{harmless}', 'tidings.order', 1)"
            ),
        )
        .await;
    }
    let largest = format!(
        "{insert} values ('a', '1', 'T', to_json(repeat('x', 16777214)), null, '{{}}', 'a.b_c-9', \
         1)"
    );
    execute(&database.pool, largest).await;
}

#[tokio::test]
async fn the_default_id_is_a_uuid_of_version_seven_of_the_present() {
    let database = migrated_database().await;
    execute(
        &database.pool,
        "insert into tidings.outbox (aggregatetype, aggregateid, type) select 'a', '1', 'T' \
         from generate_series(1, 50)",
    )
    .await;
    let rows = sqlx::query("select id, occurred_at from tidings.outbox")
        .fetch_all(&database.pool)
        .await
        .expect("the rows exist");
    for row in rows {
        let id: Uuid = row.get("id");
        let at: chrono::DateTime<chrono::Utc> = row.get("occurred_at");
        assert_eq!(
            (id.get_version_num(), id.get_variant()),
            (7, uuid::Variant::RFC4122)
        );
        let seconds = id
            .get_timestamp()
            .expect("version 7 has a time")
            .to_unix()
            .0;
        assert!(
            seconds.abs_diff(at.timestamp().unsigned_abs()) <= 1,
            "{seconds} is near {at}"
        );
    }
}

/// Returns the scripts that create the schema of version 23 without the migrator.
fn scripts_up_to_23() -> String {
    [
        "create schema if not exists tidings; set local search_path to tidings;",
        include_str!("../../migrations/0001_outbox.sql"),
        include_str!("../../migrations/0002_relay.sql"),
        include_str!("../../migrations/0003_inbox.sql"),
        include_str!("../../migrations/0010_parked.sql"),
        include_str!("../../migrations/0011_operation.sql"),
        include_str!("../../migrations/0012_relay_table.sql"),
        include_str!("../../migrations/0020_sagas.sql"),
        include_str!("../../migrations/0021_scheduled.sql"),
        include_str!("../../migrations/0022_open_sagas.sql"),
        include_str!("../../migrations/0023_inbox_collation.sql"),
    ]
    .concat()
}

/// The migration keeps rows that are older than its rules and grants the roles of relays their
/// rights.
#[tokio::test]
async fn rows_from_before_the_rules_of_24_to_26_are_kept_and_a_relays_role_may_read_its_secret() {
    let database = database().await;
    let suffix = Uuid::now_v7().simple();
    let (relay, dashboard) = (
        format!("tidings_relay_{suffix}"),
        format!("tidings_dashboard_{suffix}"),
    );
    execute(&database.pool, scripts_up_to_23()).await;
    let rows = r#"insert into tidings.outbox
            (aggregatetype, aggregateid, type, headers, occurred_at, topic) values
            ('order', '1', 'T', '{"ce_id": "x"}', 'infinity', '__x'),
            ('__order', '2', 'T', '{}', '-infinity', 'tidings.position.a.b');
        insert into tidings.scheduled
            (aggregatetype, aggregateid, type, headers, occurred_at, due_at) values
            ('order', '3', 'T', '{"tidings_x": "y"}', 'infinity', now());
        insert into tidings.relay (name, number, position) values
            ('shop', 7, '{}'), ('other', 0, null);"#;
    execute(&database.pool, rows).await;
    let roles = format!(
        "create role {relay} login password 'secret'; create role {dashboard} login password \
         'secret';
         grant usage on schema tidings to {relay}, {dashboard};
         grant select, insert, update on tidings.relay to {relay}; \
         grant select on tidings.relay to {dashboard};"
    );
    execute(&database.pool, roles).await;
    let read = "select array_agg(o::text order by seq)::text from tidings.outbox o";
    let before: String = sqlx::query_scalar(read)
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    Migrations::new()
        .run(&database.pool)
        .await
        .expect("the tables fit");
    let after: String = sqlx::query_scalar(read)
        .fetch_one(&database.pool)
        .await
        .expect("the query succeeds");
    assert_eq!(before, after);
    let secrets =
        "select relay, octet_length(secret), signs from tidings.relay_secret order by relay";
    let as_relay = database.pool_as(&relay).await;
    let secrets: Vec<(String, i32, bool)> = sqlx::query_as(secrets)
        .fetch_all(&as_relay)
        .await
        .expect("the relay's role has the right");
    assert_eq!(
        secrets,
        [
            ("other".to_owned(), 32, false),
            ("shop".to_owned(), 32, false)
        ]
    );
    let different: i64 =
        sqlx::query_scalar("select count(distinct secret) from tidings.relay_secret")
            .fetch_one(&as_relay)
            .await
            .expect("the query succeeds");
    assert_eq!(different, 2);
    let as_dashboard = database.pool_as(&dashboard).await;
    let error = sqlx::query("select from tidings.relay_secret")
        .execute(&as_dashboard)
        .await
        .expect_err("the role lacks the right");
    assert_eq!(
        error.as_database_error().and_then(|e| e.code()).as_deref(),
        Some("42501")
    );
    for pool in [as_relay, as_dashboard] {
        pool.close().await;
    }
    for role in [relay, dashboard] {
        execute(
            &database.pool,
            format!("drop owned by {role}; drop role {role}"),
        )
        .await;
    }
}

/// This holds for every way to insert a row and for every `xid` that the row already has.
#[tokio::test]
async fn a_row_has_the_number_of_the_transaction_that_inserts_it() {
    let database = migrated_database().await;
    let copied = "set session_replication_role = replica;
        insert into tidings.outbox (aggregatetype, aggregateid, type, xid) \
        values ('a', '1', 'T', '3'), ('a', '2', 'T', '4000000000');
        savepoint inner_one; insert into tidings.outbox (aggregatetype, aggregateid, type, xid) \
        values ('a', '3', 'T', '3');
        insert into tidings.outbox (aggregatetype, aggregateid, type) values ('a', '4', 'T');";
    let mut tx = database.pool.begin().await.expect("a transaction begins");
    sqlx::raw_sql(copied)
        .execute(&mut *tx)
        .await
        .expect("the insert succeeds");
    let foreign = "select count(*) from tidings.outbox where xid <> pg_current_xact_id()";
    let foreign: i64 = sqlx::query_scalar(foreign)
        .fetch_one(&mut *tx)
        .await
        .expect("the query succeeds");
    assert_eq!(foreign, 0);
}

/// A role cannot use the owner's rights through a trigger on a table of its own.
#[tokio::test]
async fn the_functions_of_the_guards_cannot_be_attached_to_other_tables() {
    let database = migrated_database().await;
    let role = format!("tidings_stranger_{}", Uuid::now_v7().simple());
    execute(
        &database.pool,
        format!(
            "create role {role} login password 'secret'; grant usage on schema tidings to {role}; \
             create schema own authorization {role}"
        ),
    )
    .await;
    let stranger = database.pool_as(&role).await;
    let attach = "create table own.outbox (id int, seq int, xid int); \
        create trigger guard after delete on own.outbox
        referencing old table as gone for each statement execute function tidings.refuse_loss()";
    let error = sqlx::raw_sql(attach)
        .execute(&stranger)
        .await
        .expect_err("the role lacks the right");
    assert_eq!(
        error.as_database_error().and_then(|e| e.code()).as_deref(),
        Some("42501")
    );
    stranger.close().await;
    execute(
        &database.pool,
        format!("drop owned by {role} cascade; drop role {role}"),
    )
    .await;
}
