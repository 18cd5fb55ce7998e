//! Content of the relay's row at a start.

use sqlx::{AssertSqlSafe, PgConnection, Row as _, postgres::PgRow, types::Json};

use super::session::within;
use crate::relay::{
    RelayOptions,
    error::Interruption,
    options::{SOURCE_BEFORE_DATABASES, default_event_source},
    position::{GivenUp, Identity, Position},
    startup::names::KnownNames,
};

/// The columns of [`Saved`].
pub(super) const SAVED: &str = "identity, position, position_epoch, number, kafka_cluster_id, \
                                moved_to, given_up, slot, publication, adopts, event_source";

/// The relay's row at a start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Saved {
    pub(crate) identity: Option<Identity>,
    /// `None` if this relay has not started yet.
    pub(crate) position: Option<Position>,
    /// The number of the position's record in the relay's own topic. Zero if there is none.
    pub(crate) number: u64,
    /// The epoch that stored the position.
    pub(crate) epoch: i64,
    pub(crate) cluster: Option<String>,
    /// The database that this one continues, as confirmed by the operator.
    pub(crate) adopts: Option<Identity>,
    /// The slot and the publication that it used.
    pub(crate) names: KnownNames,
    /// The position that the operator has moved the relay to.
    pub(crate) moved_to: Option<Position>,
    /// Events that the operator has given up.
    pub(crate) given_up: Vec<GivenUp>,
    /// `ce_source` of its records.
    pub(crate) event_source: String,
}

impl Saved {
    /// Reads the columns [`SAVED`].
    pub(super) fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        let position = |column| {
            Ok::<_, sqlx::Error>(
                row.try_get::<Option<Json<Position>>, _>(column)?
                    .map(|Json(position)| position),
            )
        };
        let identity = |column| {
            Ok::<_, sqlx::Error>(
                row.try_get::<Option<Json<Identity>>, _>(column)?
                    .map(|Json(identity)| identity),
            )
        };
        let stored = position("position")?;
        Ok(Self {
            identity: identity("identity")?,
            number: row.try_get::<i64, _>("number")?.cast_unsigned(),
            epoch: row.try_get("position_epoch")?,
            cluster: row.try_get("kafka_cluster_id")?,
            names: KnownNames {
                slot: row.try_get("slot")?,
                publication: row.try_get("publication")?,
                has_run: stored.is_some(),
            },
            position: stored,
            moved_to: position("moved_to")?,
            adopts: identity("adopts")?,
            given_up: row
                .try_get::<Option<Json<_>>, _>("given_up")?
                .map_or_else(Vec::new, |Json(events)| events),
            event_source: row
                .try_get::<Option<String>, _>("event_source")?
                .unwrap_or_default(),
        })
    }

    /// Returns the event source of a relay that has none stored. A relay that has already published
    /// keeps the source of its earlier records: subscribers identify events by their source, and
    /// delivery at least once may repeat some.
    pub(super) fn first_source(&self, database: &str) -> String {
        match self.position {
            Some(_) => SOURCE_BEFORE_DATABASES.to_owned(),
            None => default_event_source(database),
        }
    }
}

/// Reads the relay's row without taking it over. Returns `None` if this relay has no row.
///
/// # Errors
///
/// Returns an error if the database is unreachable or the tables do not exist.
pub(crate) async fn saved(
    options: &RelayOptions,
    session: &mut PgConnection,
) -> Result<Option<Saved>, Interruption> {
    let doing = "reading the relay's row";
    let sql = format!(
        "select {SAVED} from \"{}\".relay where name = $1",
        options.schema
    );
    let row = within(
        doing,
        sqlx::query(AssertSqlSafe(sql))
            .bind(&options.name)
            .fetch_optional(session),
    )
    .await?;
    row.as_ref()
        .map(Saved::of)
        .transpose()
        .map_err(Interruption::sql(doing))
}
