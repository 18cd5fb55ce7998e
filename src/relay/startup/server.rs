//! The server and the database behind a session. Whether a relay may work on them is examined by `preflight`.

use sqlx::{PgConnection, Row as _};

use crate::{
    postgres::Lsn,
    relay::{error::Interruption, leadership::relay_store::within, position::Identity},
};

/// What the server is, as far as it matters here.
pub(crate) struct Server {
    pub(crate) version: i32,
    pub(crate) logical: bool,
    pub(crate) wal_level: String,
    pub(crate) identity: Identity,
    /// Where its log ends.
    pub(crate) insert: Lsn,
}

/// Asks the server what it is.
///
/// # Errors
/// [`Interruption::Standby`] on a standby; a lost connection.
pub(crate) async fn examine(session: &mut PgConnection) -> Result<Server, Interruption> {
    let asking = "asking the server what it is";
    let recovering = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut *session);
    if within(asking, recovering).await? {
        // Passes by itself when the standby is promoted or the name points to the primary again. Its snapshots do not list what is in
        // progress, so its table must not be polled either.
        return Err(Interruption::Standby);
    }
    let row = sqlx::query(
        "select current_setting('server_version_num')::int as version, current_setting('wal_level') as wal_level,
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

/// Which database this is.
///
/// # Errors
/// When it cannot be asked.
pub(crate) async fn identity(session: &mut PgConnection) -> Result<Identity, sqlx::Error> {
    let row = sqlx::query(
        "select ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int::bigint as timeline,
                (select system_identifier::text from pg_control_system()) as system_identifier,
                (select oid::bigint from pg_database where datname = current_database()) as database_oid",
    );
    let row = row.fetch_one(session).await?;
    Ok(Identity {
        system: row.try_get("system_identifier")?,
        database: row.try_get("database_oid")?,
        timeline: row.try_get("timeline")?,
    })
}
