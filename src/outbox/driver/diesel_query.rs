//! Queries and errors of diesel, which diesel-async shares.

use diesel::{
    connection::TransactionManagerStatus,
    pg::Pg,
    query_builder::{BoxedSqlQuery, SqlQuery},
    result::{DatabaseErrorKind, Error},
    sql_query,
    sql_types::{Array, BigInt, Binary, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid},
};

use crate::outbox::{Parameter, Statement};

/// Returns a statement as a query. diesel prepares such a query for one execution only.
pub(super) fn query<'s>(statement: &'s Statement<'_>) -> BoxedSqlQuery<'s, Pg, SqlQuery> {
    let query = sql_query(statement.sql()).into_boxed();
    let bind =
        |query: BoxedSqlQuery<'s, Pg, SqlQuery>, parameter: &'s Parameter<'_>| match parameter {
            Parameter::Uuid(id) => query.bind::<Uuid, _>(id),
            Parameter::Text(text) => query.bind::<Nullable<Text>, _>(text.as_deref()),
            Parameter::Int(number) => query.bind::<Integer, _>(number),
            Parameter::BigInt(number) => query.bind::<BigInt, _>(number),
            Parameter::Bytes(bytes) => query.bind::<Nullable<Binary>, _>(bytes.as_deref()),
            Parameter::Time(time) => query.bind::<Nullable<Timestamptz>, _>(time),
            Parameter::Float(number) => query.bind::<Nullable<Double>, _>(number),
            Parameter::Uuids(ids) => query.bind::<Array<Uuid>, _>(ids),
            Parameter::Texts(texts) => {
                let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
                query.bind::<Array<Text>, _>(texts)
            }
            Parameter::Ints(numbers) => query.bind::<Array<Integer>, _>(numbers),
            Parameter::Bools(flags) => query.bind::<Array<Bool>, _>(flags),
            Parameter::ByteStrings(all) => {
                let all: Vec<&[u8]> = all.iter().map(AsRef::as_ref).collect();
                query.bind::<Array<Binary>, _>(all)
            }
            Parameter::Times(times) => query.bind::<Array<Timestamptz>, _>(times),
        };
    statement.parameters().iter().fold(query, bind)
}

/// Returns `true` if diesel has begun a transaction. It does not know those that SQL has begun.
pub(super) fn is_open(status: &TransactionManagerStatus) -> bool {
    status
        .transaction_depth()
        .is_ok_and(|depth| depth.is_some())
}

/// Returns the SQLSTATE of an error. diesel replaces it by a kind, and not every code has one. A
/// table that does not exist is recognized by its name, which the message quotes in every language.
pub(super) fn sqlstate(error: &Error, table: &str) -> Option<String> {
    let Error::DatabaseError(kind, info) = error else {
        return None;
    };
    let code = match kind {
        DatabaseErrorKind::UniqueViolation => "23505",
        DatabaseErrorKind::ForeignKeyViolation => "23503",
        DatabaseErrorKind::NotNullViolation => "23502",
        DatabaseErrorKind::CheckViolation => "23514",
        DatabaseErrorKind::SerializationFailure => "40001",
        DatabaseErrorKind::ReadOnlyTransaction => "25006",
        _ if info.message().contains(&format!("\"{table}\"")) => "42P01",
        _ => return None,
    };
    Some(code.to_owned())
}
