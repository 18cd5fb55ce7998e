//! The lease of a relay while a command works on it: no relay of the name can lead until the
//! transaction ends.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::OperatorError;
use crate::inspect::sessions::{Session, sessions};
use crate::relay::leadership::lease::lock_name;

/// Takes the relay's lease for the transaction of `session`.
///
/// # Errors
///
/// Returns a refusal that names the leader, or that lists the known relays if none has this name.
pub(super) async fn take(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
) -> Result<(), OperatorError> {
    let doing = "reading the relays";
    let known =
        format!("select coalesce(array_agg(name order by name), '{{}}') from \"{schema}\".relay");
    let known: Vec<String> = sqlx::query_scalar(AssertSqlSafe(known))
        .fetch_one(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?;
    if !known.iter().any(|one| one == name) {
        let known = if known.is_empty() {
            "none has run yet".to_owned()
        } else {
            format!("known relays are {}", known.join(", "))
        };
        return Err(OperatorError::Refused(format!(
            "no relay `{name}` has run on schema {schema}: {known}; set one with --name"
        )));
    }
    let doing = "taking the relay's lease";
    let locked = sqlx::query_scalar(
        "select pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended($1, 0::bigint))",
    )
    .bind(lock_name(schema, name));
    if locked
        .fetch_one(&mut *session)
        .await
        .map_err(OperatorError::sql(doing))?
    {
        return Ok(());
    }
    let leader = leader(session, name).await?;
    let sql = format!("select coalesce(leader, '?') from \"{schema}\".relay where name = $1");
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(name)
        .fetch_one(session)
        .await
        .map_err(OperatorError::sql(doing))?;
    let (process, pid) = match leader {
        Some(leader) => (leader.process, format!(" (session {})", leader.pid)),
        None => (
            row.try_get(0).map_err(OperatorError::sql(doing))?,
            String::new(),
        ),
    };
    Err(OperatorError::Refused(format!(
        "relay `{name}` is running: {process}{pid} leads, and only the leader has the current \
         position. Stop every relay of this name, then try again"
    )))
}

/// Returns the process that holds the lease of the relay. Returns `None` if no process of a relay
/// holds it.
///
/// # Errors
///
/// Returns the error of a failed query.
pub(super) async fn leader(
    session: &mut PgConnection,
    name: &str,
) -> Result<Option<Session>, OperatorError> {
    let sessions = sessions(session)
        .await
        .map_err(OperatorError::sql("looking for the leader"))?;
    Ok(sessions
        .into_iter()
        .find(|one| one.relay == name && one.leads))
}
