//! The migrations, compiled in.

use sqlx::{
    SqlStr,
    migrate::{Migration, MigrationType},
};

/// A migration: its version and description.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationStep {
    /// The version, ascending from 1.
    pub version: i64,
    /// A short description of the migration's subject.
    pub description: &'static str,
}

/// Version, description and statements of every migration, in order.
const ALL: &[(i64, &str, &str)] = &[
    (
        1,
        "outbox",
        include_str!("../../../migrations/0001_outbox.sql"),
    ),
    (
        2,
        "relay",
        include_str!("../../../migrations/0002_relay.sql"),
    ),
    (
        3,
        "inbox",
        include_str!("../../../migrations/0003_inbox.sql"),
    ),
    (
        10,
        "parked",
        include_str!("../../../migrations/0010_parked.sql"),
    ),
    (
        11,
        "operation",
        include_str!("../../../migrations/0011_operation.sql"),
    ),
    (
        12,
        "relay table",
        include_str!("../../../migrations/0012_relay_table.sql"),
    ),
    (
        20,
        "sagas",
        include_str!("../../../migrations/0020_sagas.sql"),
    ),
    (
        21,
        "scheduled",
        include_str!("../../../migrations/0021_scheduled.sql"),
    ),
    (
        22,
        "open sagas",
        include_str!("../../../migrations/0022_open_sagas.sql"),
    ),
    (
        23,
        "inbox collation",
        include_str!("../../../migrations/0023_inbox_collation.sql"),
    ),
    (
        24,
        "reserved",
        include_str!("../../../migrations/0024_reserved.sql"),
    ),
    (
        25,
        "relay secret",
        include_str!("../../../migrations/0025_relay_secret.sql"),
    ),
    (
        26,
        "outbox guards",
        include_str!("../../../migrations/0026_outbox_guards.sql"),
    ),
    (
        28,
        "relay names",
        include_str!("../../../migrations/0028_relay_names.sql"),
    ),
    (
        32,
        "parked ranges",
        include_str!("../../../migrations/0032_parked_ranges.sql"),
    ),
    (
        35,
        "detour attempts",
        include_str!("../../../migrations/0035_detour_attempts.sql"),
    ),
    (
        36,
        "inbox topic",
        include_str!("../../../migrations/0036_inbox_topic.sql"),
    ),
    (
        37,
        "subscriber",
        include_str!("../../../migrations/0037_subscriber.sql"),
    ),
    (
        38,
        "relay event source",
        include_str!("../../../migrations/0038_relay_event_source.sql"),
    ),
    (
        39,
        "saga code",
        include_str!("../../../migrations/0039_saga_code.sql"),
    ),
    (
        40,
        "detour correlation",
        include_str!("../../../migrations/0040_detour_correlation.sql"),
    ),
    (
        41,
        "subscriber parked",
        include_str!("../../../migrations/0041_subscriber_parked.sql"),
    ),
    (
        42,
        "subscriber parked keys",
        include_str!("../../../migrations/0042_subscriber_parked_keys.sql"),
    ),
    (
        43,
        "verification",
        include_str!("../../../migrations/0043_verification.sql"),
    ),
    (
        45,
        "subscriber control",
        include_str!("../../../migrations/0045_subscriber_control.sql"),
    ),
];

/// Returns all migrations in order. They are compiled in, because a published crate has no
/// `migrations/` at run time.
pub(super) fn steps() -> Vec<(MigrationStep, Migration)> {
    ALL.iter()
        .map(|&(version, description, sql)| {
            let migration = Migration::new(
                version,
                description.into(),
                MigrationType::Simple,
                SqlStr::from_static(sql),
                false,
            );
            (
                MigrationStep {
                    version,
                    description,
                },
                migration,
            )
        })
        .collect()
}

impl std::fmt::Display for MigrationStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.version, self.description)
    }
}
