//! Tests of a primary and its standby.

use tidings_testing::{Postgres, PostgresOptions};

use crate::wire;

fn holds(server: &Postgres, condition: &str) -> bool {
    wire::sql(
        server.port(),
        &format!("do $$ begin assert {condition}; end $$"),
    )
    .expect("Postgres answers")
}

fn run(server: &Postgres, statement: &str) {
    assert!(
        wire::sql(server.port(), statement).expect("Postgres answers"),
        "{statement}"
    );
}

#[test]
fn a_standby_follows_takes_over_and_can_have_a_standby_of_its_own() {
    let mut primary = Postgres::start(PostgresOptions::new()).expect("Postgres starts");
    run(
        &primary,
        "create table kept (n int); insert into kept values (1)",
    );
    let mut standby = primary.standby().expect("a standby follows");
    run(&primary, "insert into kept values (2)");
    standby.catch_up_with(&primary).expect("it catches up");
    assert!(holds(
        &standby,
        "pg_is_in_recovery() and (select sum(n) from kept) = 3"
    ));
    assert!(
        !wire::sql(standby.port(), "insert into kept values (3)").expect("it answers"),
        "a standby takes no writes"
    );

    primary.kill().expect("it is killed");
    standby.promote().expect("it takes over");
    run(&standby, "insert into kept values (4)");
    let second = standby.standby().expect("the new primary gets a standby");
    second.catch_up_with(&standby).expect("it catches up");
    assert!(holds(&second, "(select sum(n) from kept) = 7"));
}

#[test]
fn a_standby_that_is_held_back_loses_what_was_committed_meanwhile() {
    let mut primary = Postgres::start(PostgresOptions::new()).expect("Postgres starts");
    run(&primary, "create table kept (n int)");
    let mut standby = primary.standby().expect("a standby follows");
    standby.hold_back().expect("it stops streaming");
    run(&primary, "insert into kept values (1)");
    standby.let_follow().expect("it streams again");
    standby.catch_up_with(&primary).expect("it catches up");
    standby.hold_back().expect("it stops streaming");
    run(&primary, "insert into kept values (2)");
    primary.kill().expect("it is killed");
    standby.promote().expect("it takes over");
    assert!(
        holds(&standby, "(select sum(n) from kept) = 1"),
        "the second row is lost"
    );
    standby.standby().expect("it gets a standby that follows");
}

#[test]
fn a_failover_slot_survives_where_postgres_can_keep_it() {
    let options = PostgresOptions::new();
    let mut primary = Postgres::start(options).expect("Postgres starts");
    if primary.version() < 17 {
        return;
    }
    run(
        &primary,
        "create table kept (n int); create publication p for table kept",
    );
    let mut standby = primary.standby().expect("a standby follows");
    run(
        &primary,
        "select pg_create_logical_replication_slot('followed', 'pgoutput', false, false, true)",
    );
    run(&primary, "insert into kept values (1)");
    let waited = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| standby.wait_for_slot(&primary, "followed"));
        // Confirms what it has read, as a reader does: the standby has no WAL from before it was
        // created.
        while !waiting.is_finished() {
            run(&primary, "insert into kept values (1)");
            run(&primary, "select pg_sleep(0.1)");
            run(
                &primary,
                "select pg_replication_slot_advance('followed', pg_current_wal_lsn())",
            );
        }
        waiting.join().expect("no panic")
    });
    waited.expect("the slot is synchronized");
    run(&primary, "insert into kept values (2)");
    standby.catch_up_with(&primary).expect("it catches up");
    primary.kill().expect("it is killed");
    standby.promote().expect("it takes over");
    let changes = "(select count(*) from pg_logical_slot_peek_binary_changes(
        'followed', null, null, 'proto_version', '1', 'publication_names', 'p')) > 0";
    assert!(holds(&standby, changes));
}
