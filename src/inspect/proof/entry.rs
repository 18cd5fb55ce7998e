//! Entries of the comparison. Each has a fixed size, so that a file of entries needs no structure.

/// Id of an event.
pub(crate) type Id = [u8; 16];

/// Index of a partition in the list of all partitions.
pub(crate) type PlaceIndex = u32;

/// Index for a partition that is not known.
pub(crate) const NOWHERE: PlaceIndex = PlaceIndex::MAX;

/// Time of a commit that the server does not keep.
pub(crate) const UNKNOWN_TIME: i64 = i64::MIN;

/// An entry that can be sorted in a file.
pub(crate) trait Entry: Copy + Ord {
    /// Size in a file.
    const BYTES: usize;

    /// Appends the entry.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads an entry of [`BYTES`](Self::BYTES) bytes.
    fn decode(fields: &mut Fields<'_>) -> Self;
}

/// Fields of an encoded entry, in order.
pub(crate) struct Fields<'b>(pub(crate) &'b [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (first, rest) = self.0.split_first_chunk().expect("an entry of its size");
        self.0 = rest;
        *first
    }
}

/// An event in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CommittedEvent {
    pub(crate) id: Id,
    pub(crate) seq: i64,
    pub(crate) xid: u64,
    /// Hash of the aggregate.
    pub(crate) aggregate: u64,
    /// Time of the commit in microseconds, or [`UNKNOWN_TIME`].
    pub(crate) committed: i64,
    /// The partition where it belongs, or [`NOWHERE`].
    pub(crate) place: PlaceIndex,
    pub(crate) state: State,
    /// Number of additional records that operators or other relays have caused.
    pub(crate) repeats: u8,
}

/// State of a committed event, from the relay's position and the decisions of operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// The position contains it: a committed record exists.
    Published,
    /// The position does not contain it. A record may exist, because the position is stored later.
    Waiting,
    Parked,
    Discarded,
    Skipped,
}

/// A record in a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TopicRecord {
    pub(crate) id: Id,
    pub(crate) place: PlaceIndex,
    pub(crate) offset: i64,
    /// The time of the event or of the record in milliseconds, whichever is earlier.
    pub(crate) time: i64,
    pub(crate) origin: Origin,
}

/// Origin of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The record has the source of the relay, or its format has no source.
    Relay,
    /// A dead letter of the relay.
    DeadLetter,
    /// Another source.
    Other,
}

/// An event with the place of its first record, sorted by aggregate and place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeliveredEvent {
    pub(crate) aggregate: u64,
    pub(crate) place: PlaceIndex,
    pub(crate) offset: i64,
    pub(crate) seq: i64,
    pub(crate) xid: u64,
    pub(crate) committed: i64,
    pub(crate) id: Id,
}

// === impl Entry ===

impl Entry for CommittedEvent {
    const BYTES: usize = 54;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.xid.to_le_bytes());
        out.extend_from_slice(&self.aggregate.to_le_bytes());
        out.extend_from_slice(&self.committed.to_le_bytes());
        out.extend_from_slice(&self.place.to_le_bytes());
        out.push(self.state as u8);
        out.push(self.repeats);
    }

    fn decode(fields: &mut Fields<'_>) -> Self {
        Self {
            id: fields.take(),
            seq: i64::from_le_bytes(fields.take()),
            xid: u64::from_le_bytes(fields.take()),
            aggregate: u64::from_le_bytes(fields.take()),
            committed: i64::from_le_bytes(fields.take()),
            place: u32::from_le_bytes(fields.take()),
            state: match fields.take::<1>() {
                [0] => State::Published,
                [1] => State::Waiting,
                [2] => State::Parked,
                [3] => State::Discarded,
                _ => State::Skipped,
            },
            repeats: fields.take::<1>()[0],
        }
    }
}

impl Entry for TopicRecord {
    const BYTES: usize = 37;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.place.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
        out.push(self.origin as u8);
    }

    fn decode(fields: &mut Fields<'_>) -> Self {
        Self {
            id: fields.take(),
            place: u32::from_le_bytes(fields.take()),
            offset: i64::from_le_bytes(fields.take()),
            time: i64::from_le_bytes(fields.take()),
            origin: match fields.take::<1>() {
                [0] => Origin::Relay,
                [1] => Origin::DeadLetter,
                _ => Origin::Other,
            },
        }
    }
}

impl Entry for DeliveredEvent {
    const BYTES: usize = 60;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.aggregate.to_le_bytes());
        out.extend_from_slice(&self.place.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.xid.to_le_bytes());
        out.extend_from_slice(&self.committed.to_le_bytes());
        out.extend_from_slice(&self.id);
    }

    fn decode(fields: &mut Fields<'_>) -> Self {
        Self {
            aggregate: u64::from_le_bytes(fields.take()),
            place: u32::from_le_bytes(fields.take()),
            offset: i64::from_le_bytes(fields.take()),
            seq: i64::from_le_bytes(fields.take()),
            xid: u64::from_le_bytes(fields.take()),
            committed: i64::from_le_bytes(fields.take()),
            id: fields.take(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Entry + std::fmt::Debug>(entry: T) {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        assert_eq!(bytes.len(), T::BYTES);
        assert_eq!(T::decode(&mut Fields(&bytes)), entry);
    }

    #[test]
    fn entries_are_read_as_they_were_written() {
        for state in [
            State::Published,
            State::Waiting,
            State::Parked,
            State::Discarded,
            State::Skipped,
        ] {
            round_trip(CommittedEvent {
                id: [7; 16],
                seq: -1,
                xid: 2,
                aggregate: 3,
                committed: UNKNOWN_TIME,
                place: NOWHERE,
                state,
                repeats: 4,
            });
        }
        for origin in [Origin::Relay, Origin::DeadLetter, Origin::Other] {
            round_trip(TopicRecord {
                id: [9; 16],
                place: 1,
                offset: 2,
                time: -3,
                origin,
            });
        }
        round_trip(DeliveredEvent {
            aggregate: 1,
            place: 2,
            offset: 3,
            seq: 4,
            xid: 5,
            committed: 6,
            id: [8; 16],
        });
    }
}
