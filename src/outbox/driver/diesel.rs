//! diesel, which blocks: its answer is the result itself.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use diesel::{PgConnection, RunQueryDsl as _, connection::TransactionManager, result::Error};

use super::diesel_query::{is_open, query, sqlstate};
use crate::outbox::{
    Connection, PublishError, Statement,
    connection::{Driver, Planned, perform, sealed::Sealed},
};

struct Diesel<'c>(&'c mut PgConnection);

impl Sealed for &mut PgConnection {}

impl<'c> Connection<'c> for &'c mut PgConnection {
    type Answer<T: Send + 'c> = Result<T, PublishError>;

    fn run<T: Send + 'c>(self, operation: Planned<'c, T>) -> Result<T, PublishError> {
        let performs = pin!(perform(Diesel(self), operation));
        match performs.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => unreachable!("diesel blocks instead"),
        }
    }
}

impl Driver for Diesel<'_> {
    type Error = Error;

    async fn is_in_transaction(&mut self) -> Result<bool, Error> {
        type Manager = <PgConnection as diesel::Connection>::TransactionManager;
        Ok(is_open(Manager::transaction_manager_status_mut(self.0)))
    }

    async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, Error> {
        let rows = query(&statement).execute(self.0)?;
        Ok(u64::try_from(rows).unwrap_or(u64::MAX))
    }

    fn sqlstate(error: &Error, table: &str) -> Option<String> {
        sqlstate(error, table)
    }
}
