//! The role that migrates, and the command itself: its text and its refusals.

use std::process::{Command, Output, Stdio};

use crate::support::rights::{Rights, revoke_defaults, run};
use crate::support::services::{TestDatabase, database};

/// Runs `tidings grants`. Returns its exit code, stdout and stderr.
fn grants(database: &TestDatabase, arguments: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .arg("grants")
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", &database.url)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("the output is UTF-8");
    (
        status.code().expect("the process exits with a code"),
        text(stdout),
        text(stderr),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_migrates_an_empty_database_needs_exactly_the_printed_grants() {
    let database = database().await;
    revoke_defaults(&database).await;
    let rights = Rights::of(&database, &["migrator"]);
    rights.grant(&database.pool).await;
    let migrates = async || {
        let pool = sqlx::PgPool::connect(&rights.url(&database)).await;
        let pool = pool.map_err(|error| error.to_string())?;
        tidings::migrate(&pool).await.map_err(|e| e.to_string())
    };
    for right in &rights.sql {
        right.revoke(&database.pool).await;
        assert!(migrates().await.is_err(), "without {right:?}");
        right.grant(&database.pool).await;
    }
    migrates().await.expect("all grants are sufficient");
    run(&database.pool, "drop schema tidings cascade".into()).await;
    rights.drop_role(&database.pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_database_and_tables_can_run_the_printed_sql_repeatedly() {
    let database = database().await;
    let owner = Rights::of(&database, &["migrator"]);
    owner.grant(&database.pool).await;
    let pool = database.pool_as(&owner.role).await;
    tidings::migrate(&pool).await.expect("the owner migrates");
    let owns = format!(
        "alter database \"{}\" owner to {}",
        database.name, owner.role
    );
    run(&database.pool, owns).await;
    let roles: [&[&str]; 4] = [
        &["publisher", "--scheduling", "--migrates"],
        &["relay", "order"],
        &["subscriber", "order", "--group", "stock", "--sagas"],
        &["operator", "order"],
    ];
    for arguments in roles {
        let role = format!("r{}", uuid::Uuid::now_v7().simple());
        let arguments = [arguments, &["--role", &role, "--only", "postgres"]].concat();
        let (code, sql, error) = grants(&database, &arguments);
        assert_eq!((code, error.as_str()), (0, ""), "{arguments:?}");
        // Only an administrator creates roles, so that the first run is not the owner's.
        run(&database.pool, sql.clone()).await;
        run(&pool, sql).await;
        let drop = format!("drop owned by {role}; drop role {role}");
        run(&database.pool, drop).await;
    }
    let published = "select count(*) from pg_publication where pubname = 'tidings'";
    let published: i64 = sqlx::query_scalar(published)
        .fetch_one(&pool)
        .await
        .expect("the query succeeds");
    assert_eq!(published, 1, "the publication of the relay `tidings`");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cannot_be_granted_are_refused_with_the_remedy() {
    let database = database().await;
    let cases: [(&[&str], &str); 7] = [
        (&["relay"], "-> name them: `tidings grants relay order"),
        (&["relay", "or der"], "is not a topic of events"),
        (
            &["relay", "tidings.position.*"],
            "belongs to Kafka or to relays",
        ),
        (
            &["subscriber", "order*", "--group", "g"],
            "is not a topic of events",
        ),
        (&["subscriber", "order", "--group", "a b"], "a subscriber"),
        (&["publisher", "--role", "a$$b"], "use another name"),
        (&["publisher", "--principal", "app"], "for example User:"),
    ];
    for (arguments, part) in cases {
        let (code, text, error) = grants(&database, arguments);
        assert!(code == 2 && error.contains(part), "{arguments:?}: {error}");
        assert_eq!(text, "", "{arguments:?}");
    }
    let (code, text, _) = grants(&database, &["relay", "--topic", "events"]);
    assert!(code == 0 && text.contains("--topic events\n"), "{text}");
}
