//! Idempotent producing without transactions. Events in flight when the relay dies are sent again.

use std::collections::VecDeque;

use super::{Batch, Durable, sender::Sender};

/// Maximum number of positions that wait for acknowledgements. A further one replaces the last,
/// because positions are stored only once per second.
const MARKS_MAX: usize = 8;

/// Positions, each with the tag below which everything must be acknowledged before it is durable.
#[derive(Default)]
pub(super) struct AckedBatches {
    waiting: VecDeque<(u64, Batch)>,
}

/// Number of records between two positions while the source has more events.
const CUT_RECORDS: u64 = 4_096;

impl AckedBatches {
    pub(super) fn should_end_batch(&self, sender: &Sender, idle: bool) -> bool {
        let cut = self
            .waiting
            .back()
            .map_or(0, |(tag, _)| *tag)
            .max(sender.acks().floor());
        let since = sender.next().saturating_sub(cut);
        since >= if idle { 1 } else { CUT_RECORDS }
    }

    pub(super) fn cut(&mut self, sender: &Sender, batch: Batch) {
        let full = self.waiting.len() >= MARKS_MAX;
        match self.waiting.back_mut() {
            Some((tag, last)) if full => {
                *tag = sender.next();
                last.absorb(batch);
            }
            _ => self.waiting.push_back((sender.next(), batch)),
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn durable(&mut self, sender: &Sender) -> Option<Durable> {
        let floor = sender.acks().floor();
        let mut durable: Option<Batch> = None;
        while let Some((_, batch)) = self.waiting.pop_front_if(|(tag, _)| *tag <= floor) {
            match &mut durable {
                Some(before) => before.absorb(batch),
                None => durable = Some(batch),
            }
        }
        durable.map(|batch| Durable { batch, number: 0 })
    }
}

impl Batch {
    /// Appends the following batch to this one.
    pub(super) fn absorb(&mut self, next: Self) {
        self.position = next.position;
        if self.counts.len() < next.counts.len() {
            self.counts.resize(next.counts.len(), 0);
        }
        self.counts
            .iter_mut()
            .zip(&next.counts)
            .for_each(|(count, more)| *count += more);
    }
}
