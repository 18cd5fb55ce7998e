//! Transactions of a writer, drawn from its random numbers and then run.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection};
use tidings::{DomainEvent, Outbox};
use uuid::Uuid;

use super::Failure;
use super::random::Random;

/// The number of accounts of each kind. Half of all steps go to the first account, the hot one.
pub(crate) const ACCOUNTS: u64 = 12;

/// An account has reached its next version.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "account", id = "account")]
struct Moved {
    account: String,
    mark: Uuid,
    pad: String,
}

/// The same event for an account whose writers publish before they lock it.
#[derive(Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "early", id = "account")]
struct MovedEarly {
    account: String,
    mark: Uuid,
    pad: String,
}

/// The order of locking and publishing. The contract requires that a writer locks the account
/// before it publishes the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contract {
    Kept,
    Broken,
}

#[derive(Debug)]
pub(crate) struct Transaction {
    isolation: &'static str,
    /// If false, a crash of Postgres may lose the commit.
    synchronous: bool,
    steps: Vec<Step>,
    ending: Ending,
}

#[derive(Debug)]
struct Step {
    account: String,
    /// One mark for each event. Several events are published with one statement.
    marks: Vec<Uuid>,
    pad: usize,
    savepoint: Savepoint,
    pause: Duration,
}

#[derive(Debug)]
enum Savepoint {
    None,
    Released,
    RolledBack,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Commit,
    Rollback,
    /// A prepared transaction, which another session may finish.
    Prepared {
        commit: bool,
    },
}

impl Transaction {
    /// Draws the next transaction of a writer.
    pub(crate) fn draw(random: &mut Random, contract: Contract) -> Self {
        let isolation = *random.pick(&[
            "read committed",
            "read committed",
            "repeatable read",
            "serializable",
        ]);
        let synchronous = !random.one_in(4);
        // A few transactions have one statement with many events, and very few have many such
        // statements. A relay may be killed in the middle of such a transaction.
        let (bulk, huge) = (random.one_in(80), random.one_in(600));
        let count = match (huge, bulk) {
            (true, _) => 10 + random.below(15),
            (_, true) => 1,
            _ => 1 + random.below(4),
        };
        let mut accounts: Vec<_> = (0..count)
            .map(|_| {
                if random.one_in(2) {
                    0
                } else {
                    random.below(ACCOUNTS)
                }
            })
            .collect();
        // A common lock order avoids most deadlocks. The remaining ones are part of the history.
        accounts.sort_unstable();
        let steps = accounts
            .into_iter()
            .map(|account| Step::draw(random, account, bulk || huge, contract))
            .collect();
        let ending = match random.below(12) {
            0 | 1 => Ending::Rollback,
            2 => Ending::Prepared { commit: true },
            3 if random.one_in(3) => Ending::Prepared { commit: false },
            _ => Ending::Commit,
        };
        Self {
            isolation,
            synchronous,
            steps,
            ending,
        }
    }

    /// Runs the transaction. `name` is the name of a prepared transaction.
    ///
    /// # Errors
    ///
    /// Returns the errors of Postgres, including conflicts. The transaction may still be open
    /// afterwards.
    pub(crate) async fn run(
        &self,
        session: &mut PgConnection,
        contract: Contract,
        name: &str,
    ) -> Result<(), Failure> {
        let begin = format!(
            "begin isolation level {}; set local synchronous_commit = {}",
            self.isolation, self.synchronous
        );
        execute(session, &begin).await?;
        for step in &self.steps {
            step.run(session, contract).await?;
        }
        match self.ending {
            Ending::Commit => execute(session, "commit").await,
            Ending::Rollback => execute(session, "rollback").await,
            Ending::Prepared { commit } => {
                execute(session, &format!("prepare transaction '{name}'")).await?;
                execute(
                    session,
                    &format!(
                        "{} prepared '{name}'",
                        if commit { "commit" } else { "rollback" }
                    ),
                )
                .await
            }
        }
    }
}

impl Step {
    fn draw(random: &mut Random, account: u64, bulk: bool, contract: Contract) -> Self {
        let prefix = if contract == Contract::Kept {
            "a"
        } else {
            super::checker::EARLY
        };
        let events = if bulk { 50 + random.below(1_000) } else { 1 };
        let savepoint = match random.below(6) {
            0 => Savepoint::RolledBack,
            1 => Savepoint::Released,
            _ => Savepoint::None,
        };
        // A few events are larger than a batch of small ones.
        let pad = if !bulk && random.one_in(200) {
            200_000
        } else {
            random.below(200)
        } as usize;
        let pause = if random.one_in(8) {
            random.millis(1, 30)
        } else {
            Duration::ZERO
        };
        Self {
            account: format!("{prefix}-{account}"),
            marks: (0..events).map(|_| random.mark()).collect(),
            pad,
            savepoint,
            pause,
        }
    }

    async fn run(&self, session: &mut PgConnection, contract: Contract) -> Result<(), Failure> {
        if !matches!(self.savepoint, Savepoint::None) {
            execute(session, "savepoint step").await?;
        }
        match contract {
            Contract::Kept => {
                self.lock(session).await?;
                tokio::time::sleep(self.pause).await;
                self.publish(session, |account, mark, pad| Moved { account, mark, pad })
                    .await?;
            }
            Contract::Broken => {
                self.publish(session, |account, mark, pad| MovedEarly {
                    account,
                    mark,
                    pad,
                })
                .await?;
                tokio::time::sleep(self.pause).await;
                self.lock(session).await?;
            }
        }
        match self.savepoint {
            Savepoint::None => Ok(()),
            Savepoint::Released => execute(session, "release step").await,
            Savepoint::RolledBack => execute(session, "rollback to step").await,
        }
    }

    /// Increments the account's version by one for each event, which locks the account, and records
    /// the mark of each version.
    async fn lock(&self, session: &mut PgConnection) -> Result<(), Failure> {
        let change = "with moved as (update account set version = version + cardinality($2) \
                      where id = $1
                                     returning id, version - cardinality($2) as before)
                      insert into history (account, version, mark)
                      select id, before + ordinality, mark from moved, unnest($2::uuid[]) \
                          with ordinality as given (mark)";
        sqlx::query(change)
            .bind(&self.account)
            .bind(&self.marks)
            .execute(session)
            .await?;
        Ok(())
    }

    async fn publish<E: DomainEvent>(
        &self,
        session: &mut PgConnection,
        event: impl Fn(String, Uuid, String) -> E,
    ) -> Result<(), Failure> {
        let outbox = Outbox::new();
        let event = |mark: &Uuid| event(self.account.clone(), *mark, noise(mark, self.pad));
        match self.marks.as_slice() {
            [mark] => outbox.publish(session, &event(mark)).await.map(drop)?,
            marks => outbox
                .publish_all(session, &marks.iter().map(event).collect::<Vec<_>>())
                .await
                .map(drop)?,
        }
        Ok(())
    }
}

/// Returns text of this length that compresses poorly.
fn noise(mark: &Uuid, length: usize) -> String {
    let (seed, part) = mark.as_u64_pair();
    let mut random = Random::new(seed, part);
    let mut text = String::with_capacity(length + 16);
    while text.len() < length {
        let _ = write!(text, "{:016x}", random.next());
    }
    text.truncate(length);
    text
}

/// Runs a statement that has no parameters.
pub(crate) async fn execute(session: &mut PgConnection, statement: &str) -> Result<(), Failure> {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(session)
        .await?;
    Ok(())
}
