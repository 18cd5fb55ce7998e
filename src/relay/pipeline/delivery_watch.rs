//! Progress of delivery, reported to the stall detection (`monitor/pulse.rs`).

use std::time::Duration;

use crate::{
    kafka::Acks,
    relay::{monitor::metrics::RelayMetrics, sink::Sink},
};

/// Interval between the signs of life of a session that waits for the sink.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Tracks the progress of one session.
pub(super) struct DeliveryWatch {
    observer: RelayMetrics,
    /// All records below this tag were acknowledged at the last report.
    acknowledged: Option<u64>,
    /// The source has made progress since the last report, or had nothing more to read.
    caught_up: bool,
    event_waits: bool,
}

impl DeliveryWatch {
    pub(super) fn new(observer: &RelayMetrics) -> Self {
        Self {
            observer: observer.clone(),
            acknowledged: None,
            caught_up: false,
            event_waits: false,
        }
    }

    /// Records that the source made progress, or that it has nothing more to read at present.
    pub(super) fn caught_up(&mut self) {
        self.caught_up = true;
    }

    /// Exports the object that an event waits for, or `None` once no event waits.
    pub(super) fn event_waits(&mut self, reason: Option<&str>) {
        if self.event_waits || reason.is_some() {
            self.event_waits = reason.is_some();
            self.observer.pulse().held(reason.map(str::to_owned));
        }
    }

    /// Reports that delivery makes progress if a batch became durable or a record was acknowledged
    /// since the last report, or if nothing is pending.
    pub(super) fn report(&mut self, acks: &Acks, is_durable: bool) {
        let (floor, (under_way, _)) = (acks.floor(), acks.under_way());
        let acknowledged = self
            .acknowledged
            .replace(floor)
            .is_some_and(|before| floor > before);
        let caught_up = std::mem::take(&mut self.caught_up);
        let nothing_pending = caught_up && !self.event_waits && under_way == 0;
        if is_durable || acknowledged || nothing_pending {
            self.observer.well();
        }
    }

    /// Waits until all sent records are durable or have failed. Reports signs of life meanwhile.
    pub(super) async fn settled(&self, sink: &Sink) {
        let mut settled = std::pin::pin!(sink.settled());
        loop {
            tokio::select! {
                () = &mut settled => return,
                () = tokio::time::sleep(REPORT_INTERVAL) => self.observer.pulse().moved(),
            }
        }
    }
}
