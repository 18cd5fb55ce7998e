//! The drivers under test, each with one transaction. All of them are used as an application uses
//! them; only the begin and the end of the transaction differ.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::Connection as _;
use diesel_async::{AsyncConnection as _, TransactionManager as _};
use sea_orm::TransactionTrait as _;
use tidings::{
    Outbox, PublishError,
    event::{Envelope, EventId},
    outbox::Draft,
};

use crate::suite::OrderPlaced;

/// A call of the outbox. Each driver answers every call in its own way.
pub(crate) enum Call<'a> {
    Publish(&'a Outbox, &'a OrderPlaced),
    Draft(Box<Draft<'a>>),
    Envelope(&'a Outbox, &'a Envelope),
    At(&'a Outbox, &'a OrderPlaced, DateTime<Utc>),
    After(&'a Outbox, &'a OrderPlaced, Duration),
}

pub(crate) trait Driver: Sized + Send {
    /// Connects and begins a transaction.
    async fn begin(url: &str) -> Self;

    async fn call(&mut self, call: Call<'_>) -> Result<EventId, PublishError>;

    async fn all(
        &mut self,
        outbox: &Outbox,
        events: &[OrderPlaced],
    ) -> Result<Vec<EventId>, PublishError>;

    async fn envelopes(
        &mut self,
        outbox: &Outbox,
        envelopes: &[Envelope],
    ) -> Result<Vec<EventId>, PublishError>;

    async fn cancel(&mut self, outbox: &Outbox, id: EventId) -> Result<bool, PublishError>;

    async fn end(self, commits: bool);

    /// Publishes on a connection without a transaction. Returns `None` if the driver's types do not
    /// allow it.
    async fn outside(
        url: &str,
        outbox: &Outbox,
        event: &OrderPlaced,
    ) -> Option<Result<EventId, PublishError>>;
}

/// Implements the calls, with the expression for the connection and the way to the answer.
macro_rules! calls {
    ($self:ident, $connection:expr, $($answer:tt)*) => {
        async fn call(&mut $self, call: Call<'_>) -> Result<EventId, PublishError> {
            match call {
                Call::Publish(outbox, event) => outbox.publish($connection, event)$($answer)*,
                Call::Draft(draft) => draft.publish($connection)$($answer)*,
                Call::Envelope(outbox, envelope) => {
                    outbox.publish_envelope($connection, envelope)$($answer)*
                }
                Call::At(outbox, event, when) => {
                    outbox.publish_at($connection, event, when)$($answer)*
                }
                Call::After(outbox, event, delay) => {
                    outbox.publish_after($connection, event, delay)$($answer)*
                }
            }
        }

        async fn all(
            &mut $self,
            outbox: &Outbox,
            events: &[OrderPlaced],
        ) -> Result<Vec<EventId>, PublishError> {
            outbox.publish_all($connection, events)$($answer)*
        }

        async fn envelopes(
            &mut $self,
            outbox: &Outbox,
            envelopes: &[Envelope],
        ) -> Result<Vec<EventId>, PublishError> {
            outbox.publish_envelopes($connection, envelopes)$($answer)*
        }

        async fn cancel(&mut $self, outbox: &Outbox, id: EventId) -> Result<bool, PublishError> {
            outbox.cancel($connection, id)$($answer)*
        }
    };
}

pub(crate) struct Sqlx(sqlx::PgTransaction<'static>);

impl Driver for Sqlx {
    async fn begin(url: &str) -> Self {
        let pool = sqlx::PgPool::connect(url).await.expect("connected");
        Self(pool.begin().await.expect("begun"))
    }

    calls!(self, &mut self.0, .await);

    async fn end(self, commits: bool) {
        if commits {
            self.0.commit().await.expect("committed");
        } else {
            self.0.rollback().await.expect("rolled back");
        }
    }

    async fn outside(
        url: &str,
        outbox: &Outbox,
        event: &OrderPlaced,
    ) -> Option<Result<EventId, PublishError>> {
        let pool = sqlx::PgPool::connect(url).await.expect("connected");
        let mut connection = pool.acquire().await.expect("a connection");
        Some(outbox.publish(&mut connection, event).await)
    }
}

pub(crate) struct TokioPostgres(tokio_postgres::Transaction<'static>);

impl TokioPostgres {
    async fn connect(url: &str) -> tokio_postgres::Client {
        let connecting = tokio_postgres::connect(url, tokio_postgres::NoTls);
        let (client, connection) = connecting.await.expect("connected");
        tokio::spawn(connection);
        client
    }
}

impl Driver for TokioPostgres {
    async fn begin(url: &str) -> Self {
        // A transaction borrows its client, which lives as long as the test.
        let client = Box::leak(Box::new(Self::connect(url).await));
        Self(client.transaction().await.expect("begun"))
    }

    calls!(self, &self.0, .await);

    async fn end(self, commits: bool) {
        if commits {
            self.0.commit().await.expect("committed");
        } else {
            self.0.rollback().await.expect("rolled back");
        }
    }

    async fn outside(
        url: &str,
        outbox: &Outbox,
        event: &OrderPlaced,
    ) -> Option<Result<EventId, PublishError>> {
        Some(outbox.publish(&Self::connect(url).await, event).await)
    }
}

pub(crate) struct Diesel(diesel::PgConnection);

type Blocking = <diesel::PgConnection as diesel::Connection>::TransactionManager;

impl Driver for Diesel {
    async fn begin(url: &str) -> Self {
        use diesel::connection::TransactionManager as _;
        let mut connection = diesel::PgConnection::establish(url).expect("connected");
        Blocking::begin_transaction(&mut connection).expect("begun");
        Self(connection)
    }

    calls!(self, &mut self.0,);

    async fn end(mut self, commits: bool) {
        use diesel::connection::TransactionManager as _;
        if commits {
            Blocking::commit_transaction(&mut self.0).expect("committed");
        } else {
            Blocking::rollback_transaction(&mut self.0).expect("rolled back");
        }
    }

    async fn outside(
        url: &str,
        outbox: &Outbox,
        event: &OrderPlaced,
    ) -> Option<Result<EventId, PublishError>> {
        let mut connection = diesel::PgConnection::establish(url).expect("connected");
        Some(outbox.publish(&mut connection, event))
    }
}

pub(crate) struct DieselAsync(diesel_async::AsyncPgConnection);

type Async = <diesel_async::AsyncPgConnection as diesel_async::AsyncConnection>::TransactionManager;

impl DieselAsync {
    async fn connect(url: &str) -> diesel_async::AsyncPgConnection {
        let connection = diesel_async::AsyncPgConnection::establish(url).await;
        connection.expect("connected")
    }
}

impl Driver for DieselAsync {
    async fn begin(url: &str) -> Self {
        let mut connection = Self::connect(url).await;
        Async::begin_transaction(&mut connection)
            .await
            .expect("begun");
        Self(connection)
    }

    calls!(self, &mut self.0, .await);

    async fn end(mut self, commits: bool) {
        if commits {
            Async::commit_transaction(&mut self.0)
                .await
                .expect("committed");
        } else {
            Async::rollback_transaction(&mut self.0)
                .await
                .expect("rolled back");
        }
    }

    async fn outside(
        url: &str,
        outbox: &Outbox,
        event: &OrderPlaced,
    ) -> Option<Result<EventId, PublishError>> {
        Some(outbox.publish(&mut Self::connect(url).await, event).await)
    }
}

pub(crate) struct SeaOrm(sea_orm::DatabaseTransaction);

impl Driver for SeaOrm {
    async fn begin(url: &str) -> Self {
        let database = sea_orm::Database::connect(url).await.expect("connected");
        Self(database.begin().await.expect("begun"))
    }

    calls!(self, &self.0, .await);

    async fn end(self, commits: bool) {
        if commits {
            self.0.commit().await.expect("committed");
        } else {
            self.0.rollback().await.expect("rolled back");
        }
    }

    async fn outside(
        _: &str,
        _: &Outbox,
        _: &OrderPlaced,
    ) -> Option<Result<EventId, PublishError>> {
        None
    }
}
