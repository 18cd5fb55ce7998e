//! Background work of a saga in one process: heartbeats, retention, and reports of sagas that this
//! code cannot continue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::definition::SagaState;
use super::registration::Registration;
use super::store::Store;
use super::transition::Engine;
use crate::postgres::errors::with_causes;
use crate::postgres::session_fault;
use crate::subscriber::Ground;

/// Interval between two rounds of retention. Each round also checks the blocked sagas again.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

/// Interval between two heartbeats. Each heartbeat also refreshes the counts of open sagas.
const STANDING_INTERVAL: Duration = Duration::from_secs(15);

/// Number of sagas that one statement reads for the check.
const PAGE: i64 = 500;

/// Maximum number of sagas checked in one round. Checking a saga reads its state, so a hundred
/// thousand sagas would delay the report at the start.
const EXAMINED_MAX: usize = 10_000;

/// Maximum number of different obstacles logged at the start.
const LOGGED_MAX: usize = 10;

/// Background work of one saga in one process.
pub(super) struct Chores<S> {
    engine: Arc<Engine<S>>,
    ground: Arc<Ground>,
    registration: Registration,
}

impl<S: SagaState> Chores<S> {
    pub(super) fn new(
        engine: Arc<Engine<S>>,
        ground: Arc<Ground>,
        registration: Registration,
    ) -> Self {
        Self {
            engine,
            ground,
            registration,
        }
    }

    /// Runs until `stop` is cancelled.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        let (mut retention, mut standing) = (
            tokio::time::interval(RETENTION_INTERVAL),
            tokio::time::interval(STANDING_INTERVAL),
        );
        let mut is_examined = false;
        loop {
            let (what, done) = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = retention.tick() => {
                    let examined = self.examine(is_examined).await;
                    is_examined |= examined.is_ok();
                    ("cannot check or delete sagas yet; retrying later", match examined {
                        Ok(()) => self.forget().await,
                        Err(error) => Err(error),
                    })
                }
                _ = standing.tick() => (
                    "cannot read the saga counts yet; retrying later",
                    self.look_up_standing().await,
                ),
            };
            if let Err(error) = done {
                session_fault::close_after(&error, &self.ground.pool);
                tracing::warn!(
                    saga = self.engine.saga.name,
                    error = with_causes(&error),
                    "{what}"
                );
            }
        }
    }

    /// Finds the open sagas that this code cannot continue, marks them and reports them. Later
    /// rounds check only marked sagas, because this version may be able to continue a saga that
    /// another version has marked.
    async fn examine(&self, only_blocked: bool) -> Result<(), sqlx::Error> {
        let (mine, store) = (self.engine.mine(), self.store());
        let mut found = BTreeMap::<String, u64>::new();
        let (mut after, mut examined) = (Uuid::nil(), 0);
        while examined < EXAMINED_MAX {
            let mut conn = self.ground.pool.acquire().await?;
            let page = store
                .open_after(&mut conn, &mine, after, PAGE, only_blocked)
                .await?;
            let Some((last, _)) = page.last() else { break };
            (after, examined) = (last.id, examined + page.len());
            let (mut ids, mut obstacles) = (Vec::new(), Vec::new());
            for (stored, marked) in &page {
                let obstacle = self
                    .engine
                    .obstacle(stored)
                    .map(|obstacle| obstacle.to_string());
                if let Some(obstacle) = &obstacle {
                    *found.entry(obstacle.clone()).or_default() += 1;
                }
                if obstacle != *marked {
                    ids.push(stored.id);
                    obstacles.push(obstacle);
                }
            }
            if !ids.is_empty() {
                store.mark(&mut conn, &ids, &obstacles).await?;
            }
        }
        if only_blocked {
            return Ok(());
        }
        for (obstacle, sagas) in found.iter().take(LOGGED_MAX) {
            tracing::warn!(
                saga = mine.name,
                sagas,
                obstacle,
                "this code cannot continue some sagas and leaves them unchanged; list them with \
                 `tidings sagas list`"
            );
        }
        let (newer, version) = store
            .newer(&mut *self.ground.pool.acquire().await?, &mine)
            .await?;
        if newer > 0 {
            tracing::warn!(
                saga = mine.name,
                sagas = newer,
                written_by = version,
                version = mine.version,
                "newer code has written some sagas, and this version leaves them unchanged; deploy \
                 the newer version again to continue them"
            );
        }
        Ok(())
    }

    async fn forget(&self) -> Result<(), sqlx::Error> {
        let (saga, mut conn) = (&self.engine.saga, self.ground.pool.acquire().await?);
        self.store().forget(&mut conn, &saga.name, saga.keep).await
    }

    async fn look_up_standing(&self) -> Result<(), sqlx::Error> {
        let (saga, mut conn) = (&self.engine.saga, self.ground.pool.acquire().await?);
        self.registration.beat(&mut conn).await?;
        let (standing, obstacle) = self.store().standing(&mut conn, &saga.name).await?;
        let concern = obstacle.map(|obstacle| {
            format!(
                "{} sagas of `{}` cannot be continued: {obstacle}",
                standing.blocked, saga.name
            )
        });
        self.ground.statistics.set_concern(&saga.name, concern);
        saga.statistics.stand(standing);
        Ok(())
    }

    fn store(&self) -> Store {
        Store::new(self.ground.schema.clone())
    }
}
