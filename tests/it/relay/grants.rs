//! The grants documented in docs/managed-postgres.md are sufficient, and each of them is required.

use sqlx::{AssertSqlSafe, PgPool};
use tidings::{
    postgres,
    relay::{DebeziumOutbox, DeliveryGuarantee, OnUndeliverable, SourceKind},
};

use crate::support::records::create_topic;
use crate::support::running::{Place, Running};
use crate::support::services::{TestDatabase, migrated_database};

/// Creates a role for one test and executes the documented statements of the block that begins with
/// `-- title`. Returns the role and the statements.
async fn granted(title: &str, database: &TestDatabase, place: &Place) -> (String, Vec<String>) {
    let role = format!("r{}", uuid::Uuid::now_v7().simple());
    let named = |statement: String| {
        statement.replace(
            "publication tidings ",
            &format!("publication {} ", place.slot()),
        )
    };
    let all: Vec<String> = statements_for(title, &role, database)
        .into_iter()
        .map(named)
        .collect();
    for sql in &all {
        run(&database.pool, sql.clone()).await;
    }
    (role, all)
}

/// Returns the statements of the documented block that begins with `-- title`, with this role and
/// database.
pub(crate) fn statements_for(title: &str, role: &str, database: &TestDatabase) -> Vec<String> {
    let page = include_str!("../../../docs/managed-postgres.md");
    let block = page
        .split("```sql\n")
        .skip(1)
        .find(|block| block.starts_with(&format!("-- {title}")))
        .expect("the page has the block");
    let block = block.split("```").next().expect("the process ends");
    let lines: Vec<&str> = block
        .lines()
        .filter(|line| !line.starts_with("--"))
        .map(|line| line.split("  --").next().unwrap_or_default())
        .collect();
    let named = |text: &str| {
        let text = text.replace("'…'", "'secret'");
        // Replace whole words, because the page uses `app` and `relay` as names of roles and also
        // of a table.
        let text = text.replace(
            "database shop",
            &format!("database \"{}\"", name_of(database)),
        );
        let text = text
            .replace("role app ", &format!("role {role} "))
            .replace("role relay ", &format!("role {role} "));
        text.replace(" to app", &format!(" to {role}"))
            .replace(" to relay", &format!(" to {role}"))
            .trim()
            .to_owned()
    };
    lines
        .join("\n")
        .split(';')
        .map(named)
        .filter(|statement| !statement.is_empty())
        .collect()
}

fn name_of(database: &TestDatabase) -> &str {
    database.url.rsplit('/').next().expect("a name")
}

pub(crate) async fn run(pool: &PgPool, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn as_role(database: &TestDatabase, role: &str) -> String {
    let mut url: url::Url = database.url.parse().expect("a URL");
    url.set_username(role).expect("a name");
    url.set_password(Some("secret")).expect("a password");
    url.to_string()
}

async fn relay_as(
    database: &TestDatabase,
    place: &Place,
    role: &str,
    source: SourceKind,
) -> Running {
    let mut options = place.options();
    options.database = postgres::DatabaseSettings::parse(&as_role(database, role)).expect("a URL");
    options.source = source;
    Running::start(options)
}

async fn insert(pool: &PgPool, n: u32) {
    let sql = format!(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload) \
         values ('order', '1', 'T', '{n}')"
    );
    run(pool, sql).await;
}

async fn each_grant_is_needed_and_all_are_enough(title: &str, source: SourceKind) {
    let database = migrated_database().await;
    // Revoke the default privileges of `public`.
    run(
        &database.pool,
        format!(
            "revoke all on database \"{}\" from public",
            name_of(&database)
        ),
    )
    .await;
    let place = Place::new(&database);
    create_topic(&place.brokers, &place.topic, 1).await;
    let (role, all) = granted(title, &database, &place).await;
    insert(&database.pool, 1).await;
    let relay = relay_as(&database, &place, &role, source).await;
    let mut reader = place.reader();
    reader.until_distinct(1);
    if source == SourceKind::Wal {
        relay.says("stream", "streaming").await;
    }
    insert(&database.pool, 2).await;
    reader.until_distinct(2);
    relay.stop().await;
    for grant in all.iter().filter(|sql| sql.starts_with("grant")) {
        run(
            &database.pool,
            grant
                .replacen("grant", "revoke", 1)
                .replace(" to ", " from "),
        )
        .await;
        let refusal = relay_as(&database, &place, &role, source)
            .await
            .refusal()
            .await;
        assert!(
            refusal.contains("permission denied") && refusal.contains("tidings check"),
            "without {grant}: {refusal}"
        );
        run(&database.pool, grant.clone()).await;
    }
    if source == SourceKind::Wal {
        run(&database.pool, format!("alter role {role} noreplication")).await;
        let refusal = relay_as(&database, &place, &role, source)
            .await
            .refusal()
            .await;
        assert!(refusal.contains("REPLICATION"), "{refusal}");
    }
    run(
        &database.pool,
        format!("drop owned by {role}; drop role {role}"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_polls_needs_exactly_the_documented_grants() {
    each_grant_is_needed_and_all_are_enough("relay, poll", SourceKind::Poll).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_streams_needs_exactly_the_documented_grants() {
    each_grant_is_needed_and_all_are_enough("relay, wal", SourceKind::Wal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_of_a_debezium_table_needs_exactly_the_documented_grants() {
    let database = migrated_database().await;
    let table = "create table public.outboxevent (id uuid primary key default gen_random_uuid(), \
        aggregatetype text, aggregateid text, type text, payload text)";
    // Revoke the default privileges of `public`.
    run(
        &database.pool,
        format!(
            "revoke all on database \"{}\" from public; revoke all on schema public \
            from public; {table}",
            name_of(&database)
        ),
    )
    .await;
    let place = Place::new(&database);
    create_topic(&place.brokers, &place.topic, 1).await;
    let (role, all) = granted("relay, debezium", &database, &place).await;
    let mut options = place.options();
    options.database =
        postgres::DatabaseSettings::parse(&as_role(&database, &role)).expect("a URL");
    options.debezium = Some(DebeziumOutbox::new("public", "outboxevent"));
    options.undeliverable.policy = OnUndeliverable::Stop;
    // Positions are in the database alone, so a relay whose row is deleted makes a first start.
    options.delivery = DeliveryGuarantee::AtLeastOnce;
    let insert = async |n: u32| {
        let sql = format!(
            "insert into public.outboxevent (aggregatetype, aggregateid, type, payload) \
             values ('order', '1', 'T', '{n}')"
        );
        run(&database.pool, sql).await;
    };
    insert(1).await;
    let relay = Running::start(options.clone());
    let mut reader = place.reader();
    reader.until_distinct(1);
    relay.says("stream", "streaming").await;
    insert(2).await;
    reader.until_distinct(2);
    relay.stop().await;
    for grant in all.iter().filter(|sql| sql.starts_with("grant")) {
        // The walsender of the relay may still be running.
        let begins = "delete from tidings.relay; select pg_terminate_backend(active_pid, 5000), \
            pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name";
        run(&database.pool, format!("{begins} = '{}'", place.slot())).await;
        run(
            &database.pool,
            grant
                .replacen("grant", "revoke", 1)
                .replace(" to ", " from "),
        )
        .await;
        let refusal = Running::start(options.clone()).refusal().await;
        assert!(
            refusal.contains("permission denied"),
            "without {grant}: {refusal}"
        );
        run(&database.pool, grant.clone()).await;
    }
    run(
        &database.pool,
        format!("drop owned by {role}; drop role {role}"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_needs_exactly_the_documented_grants() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let (role, all) = granted("publisher", &database, &place).await;
    let pool = database.pool_as(&role).await;
    let event = tidings::Outbox::new();
    for (grant, works) in all
        .iter()
        .filter(|sql| sql.starts_with("grant") && !sql.contains("connect"))
        .map(|sql| (Some(sql), false))
        .chain([(None, true)])
    {
        if let Some(grant) = grant {
            run(
                &database.pool,
                grant
                    .replacen("grant", "revoke", 1)
                    .replace(" to ", " from "),
            )
            .await;
        }
        let mut tx = pool.begin().await.expect("a transaction begins");
        let published = event
            .publish(
                &mut tx,
                &crate::support::history::Moved {
                    account: "a".into(),
                    version: 1,
                },
            )
            .await;
        assert_eq!(published.is_ok(), works, "{grant:?}: {published:?}");
        drop(tx);
        if let Some(grant) = grant {
            run(&database.pool, grant.clone()).await;
        }
    }
    // Nothing more is granted: the role can forge neither order nor completeness, and it can read
    // nothing.
    for forbidden in [
        "insert into tidings.outbox (aggregatetype, aggregateid, type, seq) \
         overriding system value values ('a', 'b', 'c', 1)",
        "select * from tidings.outbox",
        "delete from tidings.outbox",
    ] {
        assert!(
            sqlx::raw_sql(forbidden).execute(&pool).await.is_err(),
            "{forbidden}"
        );
    }
    drop(pool);
}

#[tokio::test(flavor = "multi_thread")]
async fn scheduling_and_cancelling_need_exactly_the_documented_grants() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let (role, _) = granted("publisher", &database, &place).await;
    let (pool, outbox) = (database.pool_as(&role).await, tidings::Outbox::new());
    let works = async || -> Result<bool, tidings::PublishError> {
        let mut tx = pool.begin().await?;
        let event = crate::support::history::Moved {
            account: "a".into(),
            version: 1,
        };
        let id = outbox
            .publish_after(&mut tx, &event, std::time::Duration::from_secs(60))
            .await?;
        outbox.cancel(&mut tx, id).await
    };
    let grants = statements_for("scheduler", &role, &database);
    for sql in &grants {
        assert!(works().await.is_err(), "before {sql}");
        run(&database.pool, sql.clone()).await;
    }
    assert!(works().await.expect("all grants together are sufficient"));
    for grant in &grants {
        run(
            &database.pool,
            grant
                .replacen("grant", "revoke", 1)
                .replace(" to ", " from "),
        )
        .await;
        assert!(works().await.is_err(), "without {grant}");
        run(&database.pool, grant.clone()).await;
    }
    assert!(
        sqlx::raw_sql("select payload from tidings.scheduled")
            .execute(&pool)
            .await
            .is_err(),
        "nothing more is granted: scheduled events cannot be read"
    );
}
