//! SeaORM.

use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbBackend, DbErr, RuntimeErr, Value};

use super::answers_with_a_future;
use crate::outbox::{Parameter, Statement, connection::Driver};

struct SeaOrm<'c>(&'c DatabaseTransaction);

answers_with_a_future!(&'c DatabaseTransaction, transaction => SeaOrm(transaction));

impl Driver for SeaOrm<'_> {
    type Error = DbErr;

    async fn is_in_transaction(&mut self) -> Result<bool, DbErr> {
        Ok(true)
    }

    async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, DbErr> {
        let values = statement.parameters().iter().map(value);
        let statement =
            sea_orm::Statement::from_sql_and_values(DbBackend::Postgres, statement.sql(), values);
        Ok(self.0.execute_raw(statement).await?.rows_affected())
    }

    fn sqlstate(error: &DbErr, _: &str) -> Option<String> {
        let (DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error))) = error
        else {
            return None;
        };
        Some(error.as_database_error()?.code()?.into_owned())
    }
}

fn value(parameter: &Parameter<'_>) -> Value {
    match parameter {
        Parameter::Uuid(id) => (*id).into(),
        Parameter::Text(text) => text.as_deref().map(str::to_owned).into(),
        Parameter::Int(number) => (*number).into(),
        Parameter::BigInt(number) => (*number).into(),
        Parameter::Bytes(bytes) => bytes.as_deref().map(<[u8]>::to_vec).into(),
        Parameter::Time(time) => (*time).into(),
        Parameter::Float(number) => (*number).into(),
        Parameter::Uuids(ids) => ids.clone().into(),
        Parameter::Texts(texts) => {
            let texts = texts.iter().map(|text| text.clone().into_owned());
            texts.collect::<Vec<String>>().into()
        }
        Parameter::Ints(numbers) => numbers.clone().into(),
        Parameter::Bools(flags) => flags.clone().into(),
        Parameter::ByteStrings(all) => {
            let all = all.iter().map(|bytes| bytes.clone().into_owned());
            all.collect::<Vec<Vec<u8>>>().into()
        }
        Parameter::Times(times) => times.clone().into(),
    }
}
