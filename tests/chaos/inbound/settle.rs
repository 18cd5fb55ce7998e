//! Operator of a history: replays dead letters and waits until all events are handled.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};
use tokio::task::block_in_place;

use super::super::Failure;
use super::super::relays::Relays;
use super::evidence::Left;
use super::hostile::{End, Sent};
use super::members::Members;
use super::topics::{self, Letter};

/// The pause between two checks.
const PAUSE: Duration = Duration::from_secs(1);

/// The letters are read once in this number of checks.
const LOOKS_PER_READING: usize = 4;

/// An operator. Keeps all letters that were ever read, and replays each letter of an event once.
pub(crate) struct Operator {
    program: PathBuf,
    brokers: String,
    url: String,
    /// The number of deletions of letter topics. After a deletion, another letter may have the same
    /// partition and offset.
    generation: usize,
    letters: BTreeMap<(usize, String, i32, i64), Letter>,
    replayed: HashSet<(usize, String, i32, i64)>,
}

impl Operator {
    pub(crate) fn new(program: PathBuf, brokers: String, url: String) -> Self {
        Self {
            program,
            brokers,
            url,
            generation: 0,
            letters: BTreeMap::new(),
            replayed: HashSet::new(),
        }
    }

    /// Returns every letter that was read.
    pub(crate) fn letters(&self) -> Vec<Letter> {
        self.letters.values().cloned().collect()
    }

    /// Records that the topics of letters were deleted.
    pub(crate) fn letters_are_deleted(&mut self) {
        self.generation += 1;
    }

    /// Reads all letters and replays the new ones that belong to events.
    ///
    /// # Errors
    ///
    /// Returns an error if the broker does not respond or the command fails.
    pub(crate) fn work(&mut self) -> Result<(), Failure> {
        let mut to_replay = BTreeMap::<String, Vec<(i32, i64)>>::new();
        for letter in topics::read_letters(&self.brokers)? {
            let at = (
                self.generation,
                letter.topic.clone(),
                letter.partition,
                letter.offset,
            );
            if letter.mark.is_none() && self.replayed.insert(at.clone()) {
                to_replay
                    .entry(letter.topic.clone())
                    .or_default()
                    .push((letter.partition, letter.offset));
            }
            self.letters.entry(at).or_insert(letter);
        }
        for (topic, places) in to_replay {
            let places = places
                .iter()
                .map(|(partition, offset)| format!("{partition}/{offset}"));
            let mut command = Command::new(&self.program);
            command
                .args(["dead-letters", "replay", &topic, "--again"])
                .args(places)
                .env("KAFKA_BROKERS", &self.brokers);
            let output = command
                .env("DATABASE_URL", &self.url)
                .stdin(Stdio::null())
                .output()?;
            if !output.status.success() {
                return Err(format!(
                    "dead letters of {topic} cannot be replayed: {}",
                    String::from_utf8_lossy(&output.stderr)
                )
                .into());
            }
        }
        Ok(())
    }

    /// Counts the hostile records that must become a letter and have neither a letter nor a parked
    /// row.
    fn without_letters(&self, sent: &[Sent], parked: &HashSet<String>) -> usize {
        let found: HashSet<_> = self
            .letters
            .values()
            .filter_map(|letter| letter.mark.as_deref())
            .collect();
        let is_missing = |sent: &&Sent| {
            sent.hostility.end(&sent.topic) == End::Letter
                && !found.contains(sent.mark.as_str())
                && !parked.contains(&sent.mark)
        };
        sent.iter().filter(is_missing).count()
    }

    /// Replays letters and restarts processes until all events are handled. Returns `None` in this
    /// case, or a description of the remaining work if nothing has changed for `silence`.
    ///
    /// # Errors
    ///
    /// Returns an error if a process cannot be started.
    pub(crate) async fn settle(
        &mut self,
        sent: &[Sent],
        members: &mut Members,
        relays: &mut Relays,
        silence: Duration,
    ) -> Result<Option<String>, Failure> {
        let (mut state, mut changed) = (None, Instant::now());
        for look in 0.. {
            block_in_place(|| relays.revive().and_then(|()| members.revive()))?;
            let worked = if look % LOOKS_PER_READING == 0 {
                block_in_place(|| self.work())
            } else {
                Ok(())
            };
            let now = match worked {
                Ok(()) => self.look(sent).await,
                Err(error) => Err(error),
            };
            if matches!(&now, Ok(text) if text.is_empty()) {
                return Ok(None);
            }
            // The state cannot be read while a server is down. Its error then stands for the state.
            let now = now.unwrap_or_else(|error| error.to_string());
            if state.as_ref() != Some(&now) {
                (state, changed) = (Some(now), Instant::now());
            } else if changed.elapsed() > silence {
                return Ok(state);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(state)
    }

    /// Describes the remaining work. Returns an empty string if there is none.
    async fn look(&self, sent: &[Sent]) -> Result<String, Failure> {
        let mut session = PgConnection::connect(&self.url).await?;
        let left = Left::read(&mut session).await?;
        let parked =
            "select convert_from(header_values[array_position(header_names, $1)], 'UTF8') \
                      from tidings.subscriber_parked
                      where array_position(header_names, $1) is not null";
        let parked: Vec<String> = sqlx::query_scalar(parked)
            .bind(super::tables::MARK)
            .fetch_all(&mut session)
            .await?;
        let missing = self.without_letters(sent, &parked.into_iter().collect());
        if !left.is_nothing() || missing > 0 {
            let Left {
                events,
                parked,
                sagas,
            } = left;
            return Ok(format!(
                "{events} events without effect, {parked} parked, {sagas} sagas, \
                 {missing} hostile records without letter"
            ));
        }
        let unfinished = block_in_place(|| topics::unfinished(&self.brokers))?;
        Ok(if unfinished.is_empty() {
            String::new()
        } else {
            format!("not finished: {}", unfinished.join("; "))
        })
    }

    /// Returns the number of skipped records, summed over all processes.
    ///
    /// # Errors
    ///
    /// Returns an error if Postgres does not respond.
    pub(crate) async fn skipped(&self) -> Result<u64, Failure> {
        let mut session = PgConnection::connect(&self.url).await?;
        let count: i64 =
            sqlx::query_scalar("select coalesce(sum(unknown), 0)::bigint from counted")
                .fetch_one(&mut session)
                .await?;
        Ok(count.unsigned_abs())
    }
}
