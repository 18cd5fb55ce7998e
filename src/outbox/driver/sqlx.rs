//! sqlx.

use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgTransaction, Postgres,
    pool::PoolConnection,
};

use super::{PROBE, answers_with_a_future, probed};
use crate::outbox::{Parameter, Statement, connection::Driver};
use crate::postgres::errors::cleaned;

/// A connection of sqlx.
pub(crate) struct Sqlx<'c>(pub(crate) &'c mut PgConnection);

answers_with_a_future!(&'c mut PgConnection, connection => Sqlx(connection));
answers_with_a_future!(&'c mut PgTransaction<'_>, transaction => Sqlx(transaction));
answers_with_a_future!(&'c mut PoolConnection<Postgres>, connection => Sqlx(connection));

impl Driver for Sqlx<'_> {
    type Error = sqlx::Error;

    async fn is_in_transaction(&mut self) -> Result<bool, sqlx::Error> {
        // sqlx knows the transactions that it has begun.
        if self.0.is_in_transaction() {
            return Ok(true);
        }
        probed::<Self>(self.0.execute(PROBE).await.map(drop))
    }

    async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, sqlx::Error> {
        let keeps = statement.is_prepared();
        let (sql, parameters) = statement.into_parts();
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(keeps);
        for parameter in &parameters {
            query = match parameter {
                Parameter::Uuid(id) => query.bind(id),
                Parameter::Text(text) => query.bind(text.as_deref()),
                Parameter::Int(number) => query.bind(number),
                Parameter::BigInt(number) => query.bind(number),
                Parameter::Bytes(bytes) => query.bind(bytes.as_deref()),
                Parameter::Time(time) => query.bind(time),
                Parameter::Float(number) => query.bind(number),
                Parameter::Uuids(ids) => query.bind(ids),
                Parameter::Texts(texts) => {
                    query.bind(texts.iter().map(AsRef::as_ref).collect::<Vec<&str>>())
                }
                Parameter::Ints(numbers) => query.bind(numbers),
                Parameter::Bools(flags) => query.bind(flags),
                Parameter::ByteStrings(all) => {
                    query.bind(all.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>())
                }
                Parameter::Times(times) => query.bind(times),
            };
        }
        Ok(query.execute(&mut *self.0).await?.rows_affected())
    }

    fn sqlstate(error: &sqlx::Error, _: &str) -> Option<String> {
        let code = error.as_database_error()?.code()?;
        Some(code.into_owned())
    }

    fn cleaned(error: sqlx::Error) -> sqlx::Error {
        cleaned(error)
    }
}
