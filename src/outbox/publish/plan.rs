//! Calls before they are executed: checked events become a statement.

use super::{Lock, Outbox, Statements, checks::check_aggregate_count};
use crate::event::{Envelope, EventId, Headers};
use crate::outbox::{
    PublishError, Statement,
    connection::{Operation, Planned},
};

impl Outbox {
    /// Returns the statement that publishes these events, for a driver that the crate does not
    /// support. Returns `None` if there are no events.
    ///
    /// The events are checked as by [`publish`](Self::publish). Only the transaction cannot be
    /// checked: execute the statement in the one that changes the aggregates.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if an event could never be delivered.
    ///
    /// # Examples
    ///
    /// ```
    /// use serde::{Deserialize, Serialize};
    /// use tidings::{DomainEvent, Outbox, PublishError, outbox::{Parameter, Statement}};
    ///
    /// #[derive(Serialize, Deserialize, DomainEvent)]
    /// #[event(aggregate = "order", id = "order_id")]
    /// struct OrderPlaced { order_id: i64 }
    ///
    /// /// Stands for the transaction of any driver.
    /// struct Transaction(Vec<(String, usize)>);
    ///
    /// impl Transaction {
    ///     fn execute(&mut self, statement: &Statement<'_>) {
    ///         for parameter in statement.parameters() {
    ///             match parameter {
    ///                 Parameter::Uuid(_id) => { /* bind a uuid */ }
    ///                 Parameter::Text(_text) => { /* bind a text */ }
    ///                 _ => { /* and so on */ }
    ///             }
    ///         }
    ///         self.0.push((statement.sql().to_owned(), statement.parameters().len()));
    ///     }
    /// }
    ///
    /// let outbox = Outbox::new();
    /// let placed = outbox.event(&OrderPlaced { order_id: 7 }).correlation_id("req-1").build()?;
    /// let mut transaction = Transaction(Vec::new());
    /// if let Some(statement) = outbox.statement(std::slice::from_ref(&placed))? {
    ///     transaction.execute(&statement);
    /// }
    /// let (sql, parameters) = &transaction.0[0];
    /// assert!(sql.starts_with(r#"insert into "tidings".outbox ("#));
    /// assert_eq!(*parameters, 10);
    /// # Ok::<(), PublishError>(())
    /// ```
    pub fn statement<'e>(
        &self,
        envelopes: &'e [Envelope],
    ) -> Result<Option<Statement<'e>>, PublishError> {
        Ok(match envelopes {
            [envelope] => self.insertion(envelope, |statement| statement)?.statement,
            _ => self.insertions(envelopes, |statement| statement)?.statement,
        })
    }

    /// Plans the insertion of one event. `keep` decides what the statement borrows.
    pub(in crate::outbox) fn insertion<'e, 's>(
        &self,
        envelope: &'e Envelope,
        keep: impl FnOnce(Statement<'e>) -> Statement<'s>,
    ) -> Planned<'s, EventId> {
        let statements = self.statements()?;
        self.check(envelope)?;
        let statement = statements.insert(envelope, &self.default_headers, self.lock);
        self.operation(Some(keep(statement)), envelope.id)
    }

    /// Plans the insertion of any number of events.
    pub(super) fn insertions<'e, 's>(
        &self,
        envelopes: &'e [Envelope],
        keep: impl FnOnce(Statement<'e>) -> Statement<'s>,
    ) -> Planned<'s, Vec<EventId>> {
        let statements = self.statements()?;
        envelopes
            .iter()
            .try_for_each(|envelope| self.check(envelope))?;
        let bytes = envelopes
            .iter()
            .map(|envelope| envelope.payload.len() + envelope.headers.byte_len())
            .sum();
        if bytes > Self::MAX_BATCH_BYTES {
            return Err(PublishError::BatchTooLarge {
                bytes,
                max: Self::MAX_BATCH_BYTES,
            });
        }
        if self.lock == Lock::Aggregate {
            check_aggregate_count(envelopes)?;
        }
        let statement = (!envelopes.is_empty())
            .then(|| keep(statements.insert_all(envelopes, &self.default_headers, self.lock)));
        let ids = envelopes.iter().map(|envelope| envelope.id).collect();
        self.operation(statement, ids)
    }

    /// Returns a call that inserts into the outbox. Its result does not depend on the rows.
    pub(in crate::outbox) fn operation<'e, T>(
        &self,
        statement: Option<Statement<'e>>,
        value: T,
    ) -> Planned<'e, T> {
        Ok(Operation {
            statement,
            autocommit: self.autocommit,
            table: self.statements()?.outbox.clone(),
            value,
            result: |value, _| value,
        })
    }

    pub(in crate::outbox) fn statements(&self) -> Result<&Statements, PublishError> {
        Ok(self.statements.as_deref().map_err(Clone::clone)?)
    }

    pub(in crate::outbox) fn default_headers(&self) -> &Headers {
        &self.default_headers
    }
}
