//! The server and the database of a session. `preflight` examines whether a relay may work on them.

use sqlx::{PgConnection, Row as _};

use crate::{
    postgres::Lsn,
    relay::{error::Interruption, leadership::relay_store::within, position::Identity},
};

/// Properties of the server that a session needs.
pub(crate) struct Server {
    pub(crate) version: i32,
    pub(crate) logical: bool,
    pub(crate) wal_level: String,
    pub(crate) identity: Identity,
    /// The end of the server's log.
    pub(crate) insert: Lsn,
}

/// Queries the properties of the server.
///
/// # Errors
///
/// Returns [`Interruption::Standby`] if the server is a standby, or an error if the connection is
/// lost.
pub(crate) async fn examine(session: &mut PgConnection) -> Result<Server, Interruption> {
    let asking = "querying the server's properties";
    let recovering = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut *session);
    if within(asking, recovering).await? {
        // Passes by itself when the standby is promoted or the host name refers to the primary
        // again. Snapshots of a standby do not list transactions in progress, so its table must not
        // be polled either.
        return Err(Interruption::Standby);
    }
    let row = sqlx::query(
        "select current_setting('server_version_num')::int as version,
                current_setting('wal_level') as wal_level,
                pg_current_wal_insert_lsn()::text as insert",
    );
    let row = within(asking, row.fetch_one(&mut *session)).await?;
    let identity = within(asking, identity(session)).await?;
    let read = || -> Result<_, sqlx::Error> {
        let wal_level: String = row.try_get("wal_level")?;
        let insert = row
            .try_get::<String, _>("insert")?
            .parse()
            .unwrap_or_default();
        Ok(Server {
            version: row.try_get("version")?,
            logical: wal_level == "logical",
            wal_level,
            identity,
            insert,
        })
    };
    read().map_err(Interruption::sql(asking))
}

/// Returns the identity of the connected database.
///
/// # Errors
///
/// Returns an error if the query fails.
pub(crate) async fn identity(session: &mut PgConnection) -> Result<Identity, sqlx::Error> {
    let row = sqlx::query(
        "select ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))
                    ::bit(32)::int::bigint as timeline,
                (select system_identifier::text from pg_control_system()) as system_identifier,
                (select oid::bigint from pg_database where datname = current_database())
                    as database_oid",
    );
    let row = row.fetch_one(session).await?;
    Ok(Identity {
        system: row.try_get("system_identifier")?,
        database: row.try_get("database_oid")?,
        timeline: row.try_get("timeline")?,
    })
}
