//! `examples/quickstart.rs`, run as a separate process.

use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn the_quickstart_delivers_everything_once_and_leaves_nothing_behind() {
    let database = crate::support::services::database().await;
    // This test is `…/deps/it-…`; cargo builds the examples next to `deps`.
    let test = std::env::current_exe().expect("the test has a path");
    let program = test
        .ancestors()
        .nth(2)
        .expect("the test is in `deps/`")
        .join("examples/quickstart");
    let mut command = Command::new(&program);
    command
        .arg("2000")
        .env("DATABASE_URL", &database.url)
        .env("KAFKA_BROKERS", crate::support::services::brokers());
    let done = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("the task does not panic");
    let done = done.unwrap_or_else(|error| {
        panic!("{} runs (cargo test builds it): {error}", program.display())
    });
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    for (word, count) in [
        ("committed", 1760),
        ("delivered", 1760),
        ("lost", 0),
        ("repeated", 0),
        ("out of order", 0),
        ("never committed", 0),
    ] {
        assert!(
            said.lines()
                .any(|line| line.starts_with(word) && line.ends_with(&format!(" {count}"))),
            "{word} {count}: {said}"
        );
    }
    let left: i64 = sqlx::query_scalar(
        "select (select count(*) from pg_namespace where nspname like 'quickstart%') \
         + (select count(*) from pg_publication)
              + (select count(*) from pg_replication_slots where database = current_database())",
    )
    .fetch_one(&database.pool)
    .await
    .expect("the query succeeds");
    assert_eq!(left, 0);
}
