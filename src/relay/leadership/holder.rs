//! The session that holds the lock of a relay's lease. Any role may take an advisory lock, so the
//! holder need not be a relay.

use sqlx::PgConnection;

use super::lease::lock_name;

/// Prefix of the application names of Tidings' sessions.
const APPLICATION_PREFIX: &str = "tidings ";

/// A session that holds the lock and is neither a relay nor a command of Tidings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignHolder {
    pub(crate) pid: i32,
    pub(crate) role: String,
    pub(crate) application: String,
}

/// Holder of the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// No session holds it.
    None,
    /// A relay or a command: a session with an application name of Tidings, of a role that may
    /// write the table of relays.
    Relay,
    Foreign(ForeignHolder),
}

/// Looks up the holder of the lock of this relay's lease.
///
/// # Errors
///
/// Returns an error if the query fails.
pub(crate) async fn holder(
    session: &mut PgConnection,
    schema: &str,
    relay: &str,
) -> Result<Holder, sqlx::Error> {
    // A bigint key appears as two halves of 32 bits, with 1 as objsubid (PostgreSQL manual,
    // pg_locks). A shared lock blocks a relay too.
    let sql = "with lock as (
            select pg_catalog.hashtextextended($1, 0) as key
        ), relays as (
            select c.oid from pg_catalog.pg_class c
                join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where n.nspname = $2 and c.relname = 'relay'
        )
        select coalesce(l.pid, 0), coalesce(a.usename::text, '?'), coalesce(a.application_name, ''),
               pg_catalog.starts_with(coalesce(a.application_name, ''), $3) and coalesce((
                   select has_table_privilege(a.usesysid, r.oid, 'insert')
                       and has_table_privilege(a.usesysid, r.oid, 'update')
                   from relays r
               ), false)
        from lock cross join pg_catalog.pg_locks l
            left join pg_catalog.pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'advisory' and l.granted and l.objsubid = 1
            and l.database = (select oid from pg_catalog.pg_database
                where datname = pg_catalog.current_database())
            and l.classid::bigint = (lock.key >> 32) & 4294967295
            and l.objid::bigint = lock.key & 4294967295";
    let query = sqlx::query_as(sql)
        .bind(lock_name(schema, relay))
        .bind(schema)
        .bind(APPLICATION_PREFIX);
    let holders: Vec<(i32, String, String, bool)> = query.fetch_all(session).await?;
    let foreign = holders.iter().find(|(.., is_relay)| !is_relay);
    Ok(match foreign {
        Some((pid, role, application, _)) => Holder::Foreign(ForeignHolder {
            pid: *pid,
            role: role.clone(),
            application: application.clone(),
        }),
        None if holders.is_empty() => Holder::None,
        None => Holder::Relay,
    })
}

impl std::fmt::Display for ForeignHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            pid,
            role,
            application,
        } = self;
        write!(
            f,
            "session {pid} (role {}, application `{}`)",
            role.escape_debug(),
            application.escape_debug()
        )
    }
}
