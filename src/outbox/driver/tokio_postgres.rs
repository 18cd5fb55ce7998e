//! tokio-postgres. Statements are sent with their types and are not named: this takes one round
//! trip, and works with a pooler in transaction mode.

use tokio_postgres::{
    Client, Error, Transaction,
    types::{ToSql, Type},
};

use super::{PROBE, answers_with_a_future, probed};
use crate::outbox::{Parameter, Statement, connection::Driver};

struct TokioPostgres<'c> {
    client: &'c Client,
    /// `false` for a client, on which a transaction may have been begun with SQL.
    is_transaction: bool,
}

answers_with_a_future!(&'c Client, client => TokioPostgres {
    client,
    is_transaction: false,
});
answers_with_a_future!(&'c Transaction<'_>, transaction => TokioPostgres {
    client: transaction.client(),
    is_transaction: true,
});

impl Driver for TokioPostgres<'_> {
    type Error = Error;

    async fn is_in_transaction(&mut self) -> Result<bool, Error> {
        if self.is_transaction {
            return Ok(true);
        }
        probed::<Self>(self.client.batch_execute(PROBE).await)
    }

    async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, Error> {
        let parameters: Vec<_> = statement.parameters().iter().map(parameter).collect();
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> = parameters
            .iter()
            .map(|(value, ty)| (&**value as &(dyn ToSql + Sync), ty.clone()))
            .collect();
        let sql = statement.sql();
        self.client.execute_typed(sql, &parameters).await
    }

    fn sqlstate(error: &Error, _: &str) -> Option<String> {
        Some(error.code()?.code().to_owned())
    }
}

/// Returns a parameter as a value of the driver, with its type.
fn parameter<'p>(parameter: &'p Parameter<'_>) -> (Box<dyn ToSql + Sync + Send + 'p>, Type) {
    match parameter {
        Parameter::Uuid(id) => (Box::new(id), Type::UUID),
        Parameter::Text(text) => (Box::new(text.as_deref()), Type::TEXT),
        Parameter::Int(number) => (Box::new(number), Type::INT4),
        Parameter::BigInt(number) => (Box::new(number), Type::INT8),
        Parameter::Bytes(bytes) => (Box::new(bytes.as_deref()), Type::BYTEA),
        Parameter::Time(time) => (Box::new(time), Type::TIMESTAMPTZ),
        Parameter::Float(number) => (Box::new(number), Type::FLOAT8),
        Parameter::Uuids(ids) => (Box::new(ids), Type::UUID_ARRAY),
        Parameter::Texts(texts) => (Box::new(texts), Type::TEXT_ARRAY),
        Parameter::Ints(numbers) => (Box::new(numbers), Type::INT4_ARRAY),
        Parameter::Bools(flags) => (Box::new(flags), Type::BOOL_ARRAY),
        Parameter::ByteStrings(all) => {
            let all: Vec<&[u8]> = all.iter().map(AsRef::as_ref).collect();
            (Box::new(all), Type::BYTEA_ARRAY)
        }
        Parameter::Times(times) => (Box::new(times), Type::TIMESTAMPTZ_ARRAY),
    }
}
