//! Where a group begins that begins at the end: at the end of every partition that is there then. What is added later it reads from the beginning, since all of it came later.
//!
//! That a group has begun in a topic is to be seen in what it has committed. So whoever begins commits the ends of all partitions, also of those that go to other members.

use std::collections::{BTreeSet, HashSet};

use crate::kafka::{Committed, Known, Member, Partition};

/// Where a subscriber's group begins.
pub(super) struct Beginning {
    pub(super) subscriber: String,
    /// The topics at whose ends it does: none unless it was asked to.
    pub(super) at_end_of: HashSet<String>,
}

/// Where members of the group read on, in partitions for which it had not committed anything.
#[derive(Default)]
pub(super) struct Begun {
    /// Another member has begun meanwhile.
    pub(super) committed: Vec<Committed>,
    /// These are to be committed: of all partitions of a topic, whoever they go to.
    pub(super) ends: Vec<Committed>,
}

impl Beginning {
    /// Where to begin in partitions for which the group has never committed anything; from the beginning in those that are not named.
    pub(super) fn of(&self, member: &Member, never: &[Partition]) -> Begun {
        let topics: BTreeSet<&str> =
            never.iter().map(|partition| &*partition.topic).filter(|topic| self.at_end_of.contains(*topic)).collect();
        let mut begun = Begun::default();
        for topic in topics {
            if let Err(error) = begin(member, topic, &mut begun) {
                tracing::warn!(
                    subscriber = self.subscriber,
                    topic,
                    error,
                    "where the topic ends is not known: it is read from its beginning"
                );
            }
        }
        begun
    }
}

fn begin(member: &Member, topic: &str, begun: &mut Begun) -> Result<(), String> {
    let Known { committed, never } = member.committed(&member.partitions_of(topic)?)?;
    if !committed.is_empty() {
        begun.committed.extend(committed);
        return Ok(());
    }
    let end_of = |partition: Partition| member.end_now(&partition).map(|offset| Committed { partition, offset, metadata: String::new() });
    begun.ends.extend(never.into_iter().map(end_of).collect::<Result<Vec<_>, _>>()?);
    Ok(())
}
