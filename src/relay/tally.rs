//! How many records each topic has acknowledged: pure.

use std::collections::VecDeque;

/// Counts acknowledged records per route. Holds runs of records of one route, so at most one entry for each record under way.
#[derive(Debug, Default)]
pub(super) struct Tally {
    under_way: VecDeque<Run>,
    acknowledged: Vec<u64>,
}

#[derive(Debug)]
struct Run {
    route: usize,
    tag_end: u64,
    records: u64,
}

impl Tally {
    /// Record `tag` went to `route`. Tags come in order.
    pub(super) fn sent(&mut self, tag: u64, route: usize) {
        match self.under_way.back_mut() {
            Some(run) if run.route == route => {
                run.tag_end = tag + 1;
                run.records += 1;
            }
            _ => self.under_way.push_back(Run { route, tag_end: tag + 1, records: 1 }),
        }
    }

    /// Every record below `floor` is acknowledged.
    pub(super) fn acknowledged(&mut self, floor: u64) {
        while let Some(run) = self.under_way.front_mut() {
            let first = run.tag_end - run.records;
            let done = floor.min(run.tag_end).saturating_sub(first);
            if self.acknowledged.len() <= run.route {
                self.acknowledged.resize(run.route + 1, 0);
            }
            self.acknowledged[run.route] += done;
            run.records -= done;
            if run.records > 0 {
                return;
            }
            self.under_way.pop_front();
        }
    }

    /// What was acknowledged since the last call: route and records.
    pub(super) fn take(&mut self) -> Vec<(usize, u64)> {
        let counts = std::mem::take(&mut self.acknowledged);
        counts.into_iter().enumerate().filter(|(_, records)| *records > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_once_each_for_their_own_topic() {
        let mut tally = Tally::default();
        for (tag, route) in [0, 0, 1, 0, 1, 1].into_iter().enumerate() {
            tally.sent(tag as u64, route);
        }
        tally.acknowledged(1);
        assert_eq!(tally.take(), [(0, 1)]);
        tally.acknowledged(5);
        tally.acknowledged(5);
        assert_eq!(tally.take(), [(0, 2), (1, 2)]);
        tally.acknowledged(6);
        assert_eq!(tally.take(), [(1, 1)]);
    }
}
