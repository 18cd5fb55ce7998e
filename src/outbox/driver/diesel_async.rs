//! diesel-async.

use diesel::result::Error;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl as _, TransactionManager};

use super::{
    answers_with_a_future,
    diesel_query::{is_open, query, sqlstate},
};
use crate::outbox::{Statement, connection::Driver};

struct DieselAsync<'c>(&'c mut AsyncPgConnection);

answers_with_a_future!(&'c mut AsyncPgConnection, connection => DieselAsync(connection));

impl Driver for DieselAsync<'_> {
    type Error = Error;

    async fn is_in_transaction(&mut self) -> Result<bool, Error> {
        type Manager = <AsyncPgConnection as AsyncConnection>::TransactionManager;
        Ok(is_open(Manager::transaction_manager_status_mut(self.0)))
    }

    async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, Error> {
        let rows = query(&statement).execute(self.0).await?;
        Ok(u64::try_from(rows).unwrap_or(u64::MAX))
    }

    fn sqlstate(error: &Error, table: &str) -> Option<String> {
        sqlstate(error, table)
    }
}
