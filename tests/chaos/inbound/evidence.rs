//! Committed events and their outcomes, read from Postgres and Kafka.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{Connection as _, PgConnection};

use super::super::Failure;
use super::events::{ACCOUNT_TOPIC, COMMANDS, LEDGER};
use super::hostile::Sent;
use super::orders::SAGA;
use super::tables::MARK;
use super::topics::Letter;

/// An event that a writer or a saga committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    /// The subscriber and the account of a booking, or the topic and the key of a command.
    pub(crate) aggregate: Arc<str>,
    pub(crate) version: i64,
    pub(crate) topic: Arc<str>,
    /// The number of attempts that its handler must fail.
    pub(crate) fails: i32,
}

/// An effect of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) consumer: Arc<str>,
    pub(crate) event_id: String,
    pub(crate) topic: Arc<str>,
    pub(crate) attempt: i32,
    /// The mark of a hostile record.
    pub(crate) mark: Option<String>,
}

/// An order and its effects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) id: i64,
    pub(crate) quantity: i64,
    pub(crate) cents: i64,
    pub(crate) refused_by: String,
    pub(crate) status: String,
    /// The sum of all movements, as is `money`.
    pub(crate) stock: i64,
    pub(crate) money: i64,
    pub(crate) parcels: i64,
    pub(crate) audits: i64,
    /// The status of its saga.
    pub(crate) saga: Option<String>,
}

/// The input of the checker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    /// Committed events by event id.
    pub(crate) committed: HashMap<String, Committed>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) orders: Vec<Order>,
    /// Observations of handlers that must not occur.
    pub(crate) anomalies: Vec<String>,
    /// Parked events, each with its mark or its position.
    pub(crate) parked: Vec<String>,
    pub(crate) letters: Vec<Letter>,
    pub(crate) hostile: Vec<Sent>,
    /// Partitions with records that their group has not finished.
    pub(crate) unfinished: Vec<String>,
    /// The closing round, which has no faults: the records that must be skipped, and those that
    /// were counted as skipped.
    pub(crate) skipped: (u64, u64),
}

/// The remaining work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) events: i64,
    pub(crate) parked: i64,
    pub(crate) sagas: i64,
}

fn commands() -> Vec<String> {
    COMMANDS.map(str::to_owned).to_vec()
}

impl Left {
    /// # Errors
    ///
    /// Returns an error if Postgres does not respond.
    pub(crate) async fn read(session: &mut PgConnection) -> Result<Self, Failure> {
        let counts = "select
            (select count(*) from history h where not exists (select from effect e \
                where e.event_id = h.event_id and e.mark is null))
            + (select count(*) from tidings.outbox o where type = any($1)
               and not exists (select from effect e where e.event_id = o.id::text \
                   and e.mark is null)),
            (select count(*) from tidings.subscriber_parked),
            (select count(*) from orders o where not exists
                (select from tidings.saga s where s.name = $2 and s.key = o.id::text \
                    and s.ended_at is not null))";
        let (events, parked, sagas) = sqlx::query_as(counts)
            .bind(commands())
            .bind(SAGA)
            .fetch_one(session)
            .await?;
        Ok(Self {
            events,
            parked,
            sagas,
        })
    }

    pub(crate) fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

impl Evidence {
    /// Reads the evidence in the database, and verifies that the history has no gap: the versions
    /// of each account must be consecutive.
    ///
    /// # Errors
    ///
    /// Returns an error if Postgres does not respond, or if the history has a gap. A gap is a fault
    /// of the test or of Postgres.
    pub(crate) async fn read(url: &str) -> Result<Self, Failure> {
        let mut session = PgConnection::connect(url).await?;
        let gap = "select id from account left join (select account, max(version), count(*) \
                   from history group by 1) h on h.account = id
                   where version <> coalesce(max, 0) or version <> coalesce(count, 0) limit 1";
        if let Some(account) = sqlx::query_scalar::<_, String>(gap)
            .fetch_optional(&mut session)
            .await?
        {
            return Err(format!("the history of account {account} has a gap").into());
        }
        let mut evidence = Self::default();
        evidence.read_committed(&mut session).await?;
        let effects = "select consumer, event_id, topic, attempt, mark from effect order by seq";
        let effects: Vec<(String, String, String, i32, Option<String>)> =
            sqlx::query_as(effects).fetch_all(&mut session).await?;
        evidence.effects = effects
            .into_iter()
            .map(|(consumer, event_id, topic, attempt, mark)| Effect {
                consumer: consumer.into(),
                event_id,
                topic: topic.into(),
                attempt,
                mark,
            })
            .collect();
        evidence.read_orders(&mut session).await?;
        evidence.anomalies = sqlx::query_scalar("select what from anomaly")
            .fetch_all(&mut session)
            .await?;
        let parked = "select coalesce(convert_from(\
                      header_values[array_position(header_names, $1)], 'UTF8'),
                                      topic || '/' || partition || '/' || record_offset || ' ' || \
                                          coalesce(error, '')) from tidings.subscriber_parked";
        evidence.parked = sqlx::query_scalar(parked)
            .bind(MARK)
            .fetch_all(&mut session)
            .await?;
        Ok(evidence)
    }

    async fn read_committed(&mut self, session: &mut PgConnection) -> Result<(), Failure> {
        let bookings = "select account, version, event_id, fails from history";
        let bookings: Vec<(String, i64, String, i32)> =
            sqlx::query_as(bookings).fetch_all(&mut *session).await?;
        for (account, version, id, fails) in bookings {
            let aggregate = format!("{LEDGER} {account}").into();
            self.committed.insert(
                id,
                Committed {
                    aggregate,
                    version,
                    topic: ACCOUNT_TOPIC.into(),
                    fails,
                },
            );
        }
        let sent = "select 'chaos-' || aggregatetype, aggregateid, seq, id::text, \
                    coalesce((payload ->> 'fails')::int, 0)
                    from tidings.outbox where type = any($1)";
        let sent: Vec<(String, String, i64, String, i32)> = sqlx::query_as(sent)
            .bind(commands())
            .fetch_all(session)
            .await?;
        for (topic, key, version, id, fails) in sent {
            let aggregate = format!("{topic} {key}").into();
            self.committed.insert(
                id,
                Committed {
                    aggregate,
                    version,
                    topic: topic.into(),
                    fails,
                },
            );
        }
        Ok(())
    }

    async fn read_orders(&mut self, session: &mut PgConnection) -> Result<(), Failure> {
        let orders = "select o.id, quantity, cents, refused_by, o.status,
                             coalesce((select sum(m.quantity) from stock_move m \
                                 where m.order_id = o.id), 0)::bigint,
                             coalesce((select sum(m.cents) from money_move m \
                                 where m.order_id = o.id), 0)::bigint,
                             (select count(*) from parcel p where p.order_id = o.id),
                             (select count(*) from audited a where a.order_id = o.id),
                             (select s.status from tidings.saga s where s.name = $1 \
                                 and s.key = o.id::text)
                      from orders o order by o.id";
        type Row = (
            i64,
            i64,
            i64,
            String,
            String,
            i64,
            i64,
            i64,
            i64,
            Option<String>,
        );
        let orders: Vec<Row> = sqlx::query_as(orders).bind(SAGA).fetch_all(session).await?;
        self.orders = orders
            .into_iter()
            .map(
                |(id, quantity, cents, refused_by, status, stock, money, parcels, audits, saga)| {
                    Order {
                        id,
                        quantity,
                        cents,
                        refused_by,
                        status,
                        stock,
                        money,
                        parcels,
                        audits,
                        saga,
                    }
                },
            )
            .collect();
        Ok(())
    }
}
