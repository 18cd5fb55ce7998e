//! The publication of the outbox: examination and creation.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::relay::{RelayOptions, error::Interruption, leadership::relay_store::within};

/// Returns `true` if the publication exists and fits the outbox.
///
/// # Errors
///
/// Returns an interruption with the remedy if the publication does not fit, or an interruption if
/// the connection is lost.
pub(crate) async fn fit_publication(
    options: &RelayOptions,
    name: &str,
    session: &mut PgConnection,
) -> Result<bool, Interruption> {
    let doing = "looking for the publication";
    let (schema, table) = options.table();
    let found = sqlx::query_as(
        "select p.pubinsert,
                p.puballtables or coalesce(bool_or(t.ours and t.rowfilter is null), false),
                coalesce(bool_or(not t.ours), false)
         from pg_publication p
         left join lateral (
             select t.schemaname = $2 and t.tablename = $3 as ours, t.rowfilter
             from pg_publication_tables t where t.pubname = p.pubname
         ) t on true
         where p.pubname = $1 group by p.oid, p.pubinsert, p.puballtables",
    );
    let found = found
        .bind(name)
        .bind(schema)
        .bind(table)
        .fetch_optional(session);
    let found: Option<(bool, bool, bool)> = within(doing, found).await?;
    match found {
        Some((true, true, _)) => Ok(true),
        Some((_, false, true)) => Err(Interruption::Refused(format!(
            "publication `{name}` does not contain this outbox, or not all of its rows: a relay \
             of another schema may have the same name (give this one another --name); if the \
             publication is not in use, drop it and let the relay create it"
        ))),
        Some((inserts, _, _)) => Err(Interruption::PublicationUnfit(format!(
            "publication `{name}` {}; or drop it and let the relay create it",
            if inserts {
                format!(
                    "does not contain the outbox, or not all of its rows: run ALTER PUBLICATION \
                     \"{name}\" SET TABLE {}",
                    options.quoted_table()
                )
            } else {
                format!(
                    "leaves inserts out: run ALTER PUBLICATION \"{name}\" SET (publish = 'insert')"
                )
            },
        ))),
        None if options.configured_publication().is_some() => Err(Interruption::Refused(format!(
            "there is no publication `{name}` (outbox.publication): name the one that the \
             connector uses, or remove the key and let the relay create its own"
        ))),
        None => Ok(false),
    }
}

/// Creates the publication unless it exists.
///
/// # Errors
///
/// Returns the errors of [`fit_publication`].
pub(super) async fn ensure_publication(
    options: &RelayOptions,
    name: &str,
    session: &mut PgConnection,
) -> Result<(), Interruption> {
    if fit_publication(options, name, session).await? {
        return Ok(());
    }
    let sql = format!(
        "create publication \"{}\" for table {} with (publish = 'insert')",
        name.replace('"', "\"\""),
        options.quoted_table()
    );
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(session)
        .await
        .map_err(Interruption::sql("creating the publication"))?;
    Ok(())
}
