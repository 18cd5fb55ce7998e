//! pgbench with the statements of a subscriber that has an inbox, in the same number of messages.
//!
//! Its rate is the highest that Postgres reaches for clients that send these statements one by one.

use std::process::Command;
use std::time::Instant;
use std::{fs, iter};

use crate::harness::Outcome;
use crate::options::{Scenario, Transactions};
use crate::report::Measured;
use crate::scenarios;

/// Rows of the table that the transactions update.
const ACCOUNTS: usize = 20_000;

/// Runs pgbench with the subscriber's number of events, and one client per connection.
///
/// # Errors
///
/// Returns an error if pgbench is not installed or fails.
pub(crate) async fn run(
    server: &str,
    scenario: Scenario,
    records: u64,
) -> Outcome<Option<Measured>> {
    let Some(transactions) = scenario.transactions() else {
        return Ok(None);
    };
    let database = scenarios::database(server).await?;
    let script = std::env::temp_dir().join(format!("tidings-bench-{}.sql", std::process::id()));
    fs::write(&script, text(&transactions))?;
    let per_client = (records / (transactions.connections * transactions.events) as u64).max(1);
    let mut command = Command::new("pgbench");
    command.args([
        "-n",
        "-j",
        "2",
        "-D",
        "t=0",
        "-c",
        &transactions.connections.to_string(),
        "-t",
        &per_client.to_string(),
    ]);
    let began = Instant::now();
    let done = command.arg("-f").arg(&script).arg(&database).output()?;
    let elapsed = began.elapsed().as_secs_f64();
    let _ = fs::remove_file(&script);
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into_owned().into());
    }
    let said = String::from_utf8_lossy(&done.stdout);
    let rate = said.lines().find_map(|line| {
        line.strip_prefix("tps = ")?
            .split(' ')
            .next()?
            .parse::<f64>()
            .ok()
    });
    let committed = per_client * transactions.connections as u64;
    let seconds = rate.map_or(elapsed, |rate| committed as f64 / rate);
    Ok(Some(Measured {
        records: committed * transactions.events as u64,
        seconds,
        cpu_seconds: 0.0,
        peak_megabytes: 0.0,
    }))
}

/// Each client updates its own accounts, because concurrent handlers never share an aggregate.
fn text(transactions: &Transactions) -> String {
    let Transactions {
        connections: clients,
        events,
        at_once,
    } = *transactions;
    let own = ACCOUNTS / clients;
    let account = |n: &str| format!("((:r + {n} * 617) % {own}) * {clients} + :client_id");
    let insert = "insert into tidings.inbox (consumer, source, event_id)";
    let rows = match events {
        1 => "values ('bench', '/bench', 'event-:client_id-:t')".to_owned(),
        _ => format!(
            "select 'bench', '/bench', 'event-:client_id-:t-' || g \
             from generate_series(1, {events}) g"
        ),
    };
    let update = if at_once {
        let all = format!(
            "select {} as id, 1999 as cents from generate_series(1, {events}) g",
            account("g")
        );
        format!(
            "update account set cents = account.cents + n.cents from (select id, \
             sum(cents)::bigint as cents from ({all}) u group by id order by id) as n \
             where account.id = n.id;\n"
        )
    } else {
        let updates = (0..events).map(|n| {
            format!(
                "update account set cents = cents + 1999 where id = {};\n",
                account(&n.to_string())
            )
        });
        updates.collect()
    };
    iter::once("\\set t :t + 1\n\\set r random(0, 1000000)\n")
        .chain(["set local lock_timeout = 10000 \\; \
             set local idle_in_transaction_session_timeout = 60000 \\; "])
        .chain([insert, " ", &rows, " \\; begin;\n", &update, "commit;\n"])
        .collect()
}
