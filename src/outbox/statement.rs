//! Statements as values: SQL and typed parameters, which any Postgres driver can execute.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// A statement with its parameters, `$1` first.
///
/// The drivers that the crate supports execute statements by themselves: pass a connection to
/// [`Outbox::publish`](crate::Outbox::publish). Use a `Statement` with any other driver, or with
/// another version of one. [`Outbox::statement`](crate::Outbox::statement) has an example.
///
/// Execute it in the transaction that changes the aggregate. Nothing can check this here.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement<'e> {
    sql: Arc<str>,
    parameters: Vec<Parameter<'e>>,
    prepared: bool,
}

/// A parameter of a [`Statement`], by its Postgres type.
///
/// Bind each with exactly this type: Postgres would otherwise convert the value or refuse it.
/// Arrays contain no null.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter<'e> {
    /// `uuid`
    Uuid(Uuid),
    /// `text`
    Text(Option<Cow<'e, str>>),
    /// `int4`
    Int(i32),
    /// `int8`
    BigInt(i64),
    /// `bytea`
    Bytes(Option<Cow<'e, [u8]>>),
    /// `timestamptz`
    Time(Option<DateTime<Utc>>),
    /// `float8`
    Float(Option<f64>),
    /// `uuid[]`
    Uuids(Vec<Uuid>),
    /// `text[]`
    Texts(Vec<Cow<'e, str>>),
    /// `int4[]`
    Ints(Vec<i32>),
    /// `bool[]`
    Bools(Vec<bool>),
    /// `bytea[]`
    ByteStrings(Vec<Cow<'e, [u8]>>),
    /// `timestamptz[]`
    Times(Vec<DateTime<Utc>>),
}

impl<'e> Statement<'e> {
    pub(crate) fn new(sql: &Arc<str>, parameters: Vec<Parameter<'e>>, prepared: bool) -> Self {
        Self {
            sql: Arc::clone(sql),
            parameters,
            prepared,
        }
    }

    /// Returns the SQL. Its text is the same for every event of an outbox, so it can stay prepared.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Returns the parameters in the order of their numbers.
    pub fn parameters(&self) -> &[Parameter<'e>] {
        &self.parameters
    }

    /// Returns `false` if the statement must not stay prepared. See
    /// [`Outbox::unprepared`](crate::Outbox::unprepared).
    pub fn is_prepared(&self) -> bool {
        self.prepared
    }

    #[cfg(feature = "sqlx")]
    pub(super) fn into_parts(self) -> (Arc<str>, Vec<Parameter<'e>>) {
        (self.sql, self.parameters)
    }

    /// Copies what the parameters borrow.
    pub(super) fn into_owned(self) -> Statement<'static> {
        Statement {
            sql: self.sql,
            parameters: self
                .parameters
                .into_iter()
                .map(Parameter::into_owned)
                .collect(),
            prepared: self.prepared,
        }
    }
}

impl Parameter<'_> {
    fn into_owned(self) -> Parameter<'static> {
        match self {
            Self::Uuid(id) => Parameter::Uuid(id),
            Self::Text(text) => Parameter::Text(text.map(owned)),
            Self::Int(number) => Parameter::Int(number),
            Self::BigInt(number) => Parameter::BigInt(number),
            Self::Bytes(bytes) => Parameter::Bytes(bytes.map(owned)),
            Self::Time(time) => Parameter::Time(time),
            Self::Float(number) => Parameter::Float(number),
            Self::Uuids(ids) => Parameter::Uuids(ids),
            Self::Texts(texts) => Parameter::Texts(texts.into_iter().map(owned).collect()),
            Self::Ints(numbers) => Parameter::Ints(numbers),
            Self::Bools(flags) => Parameter::Bools(flags),
            Self::ByteStrings(all) => Parameter::ByteStrings(all.into_iter().map(owned).collect()),
            Self::Times(times) => Parameter::Times(times),
        }
    }
}

fn owned<T: ToOwned + ?Sized>(text: Cow<'_, T>) -> Cow<'static, T> {
    Cow::Owned(text.into_owned())
}
