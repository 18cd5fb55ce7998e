//! Events without a record: lost, unless a gap of the topics explains it. Pure.

use std::io;
use std::path::Path;

use super::compare::Compared;
use super::entry::NOWHERE;
use super::horizon::Horizons;
use super::places::{Place, Places};
use super::report::{Fault, Kind};
use super::sorter::Sorter;

/// Counts the events without a record. Returns the number of those that a gap explains although
/// their topic is not one that the relay has published to, or does not exist any more.
pub(super) fn count_missing(
    compared: &mut Compared,
    places: &Places,
    horizons: &Horizons,
    folder: &Path,
) -> io::Result<u64> {
    let mut unplaced = 0;
    let missing = std::mem::replace(&mut compared.missing, Sorter::new(folder));
    let (tally, findings) = (&mut compared.tally, &mut compared.findings);
    let is_any = |condition: fn(&Place) -> bool| places.list.iter().any(condition);
    for event in missing.sorted()? {
        let event = event?;
        // Without its partition, any gap may explain it.
        let (topic, hidden, compacted, trimmed) = match places.get(event.place) {
            Some(place) => (
                false,
                place.is_hidden,
                place.is_compacted,
                horizons.may_be_trimmed(event.place, event.seq),
            ),
            None => (
                !places.missing.is_empty(),
                is_any(|place| place.is_hidden),
                is_any(|place| place.is_compacted),
                horizons.is_any(),
            ),
        };
        match (topic, hidden, compacted, trimmed) {
            (true, ..) => tally.without_topic += 1,
            (_, true, ..) => tally.hidden += 1,
            (_, _, true, _) => tally.compacted += 1,
            (_, _, _, true) => tally.trimmed += 1,
            _ => {
                tally.lost += 1;
                findings.add(Fault {
                    kind: Kind::Lost,
                    id: event.id,
                    place: (event.place != NOWHERE).then_some((event.place, -1)),
                    other: None,
                    copies: 0,
                });
                continue;
            }
        }
        unplaced += u64::from(event.place == NOWHERE);
    }
    Ok(unplaced)
}
