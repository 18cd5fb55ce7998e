//! The secret that signs the relay's positions.

use sqlx::{AssertSqlSafe, PgConnection};

use super::{RelayStore, session::within};
#[cfg(feature = "cli")]
use crate::relay::RelayOptions;
use crate::relay::{error::Interruption, position::Seal};

impl RelayStore {
    /// Returns the seal that signs the relay's positions.
    pub(crate) fn seal(&self) -> &Seal {
        &self.seal
    }

    /// Returns `true` if every position that this relay has written is signed.
    pub(crate) fn signs(&self) -> bool {
        self.signs
    }

    /// Stores that the relay signs its positions. From then on, no unsigned position counts.
    ///
    /// # Errors
    ///
    /// Returns an error if the database is unreachable.
    pub(crate) async fn note_signed(&mut self) -> Result<(), Interruption> {
        if !self.signs {
            let sql = format!(
                "update {}.relay_secret set signs = true where relay = $1",
                self.schema
            );
            let stored = sqlx::query(AssertSqlSafe(sql))
                .bind(&self.name)
                .execute(&mut self.session);
            within("storing that positions are signed", stored).await?;
            self.signs = true;
        }
        Ok(())
    }
}

/// Returns the relay's secret and whether all of its records are signed. Creates no secret: without
/// one, the seal accepts no record.
///
/// # Errors
///
/// Returns an error if the database is unreachable.
#[cfg(feature = "cli")]
pub(crate) async fn known_seal(
    options: &RelayOptions,
    session: &mut PgConnection,
) -> Result<(Seal, bool), Interruption> {
    let read = format!(
        "select secret, signs from \"{}\".relay_secret where relay = $1",
        options.schema
    );
    let known = sqlx::query_as(AssertSqlSafe(read))
        .bind(&options.name)
        .fetch_optional(session);
    let known: Option<(Vec<u8>, bool)> =
        within("reading the secret for signatures of positions", known).await?;
    Ok(known.map_or_else(
        || (Seal::new(&[]), false),
        |(secret, signs)| (Seal::new(&secret), signs),
    ))
}

/// Returns the relay's secret, which is created at its first start, and whether all of its records
/// are signed.
pub(super) async fn seal(
    session: &mut PgConnection,
    schema: &str,
    name: &str,
) -> Result<(Seal, bool), Interruption> {
    let doing = "reading the secret for signatures of positions";
    let read = format!("select secret, signs from {schema}.relay_secret where relay = $1");
    let known: Option<(Vec<u8>, bool)> = within(
        doing,
        sqlx::query_as(AssertSqlSafe(read.clone()))
            .bind(name)
            .fetch_optional(&mut *session),
    )
    .await?;
    let (secret, signs) = match known {
        Some(known) => known,
        None => {
            let make = format!(
                "insert into {schema}.relay_secret (relay) values ($1) on conflict do nothing"
            );
            within(
                doing,
                sqlx::query(AssertSqlSafe(make))
                    .bind(name)
                    .execute(&mut *session),
            )
            .await?;
            within(
                doing,
                sqlx::query_as(AssertSqlSafe(read))
                    .bind(name)
                    .fetch_one(session),
            )
            .await?
        }
    };
    Ok((Seal::new(&secret), signs))
}
