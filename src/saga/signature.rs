//! Part of a definition that another process can compare: its version, steps, commands and replies.
//! Pure.

use serde::{Deserialize, Serialize};

use crate::fnv::fnv1a;

/// Signature of a saga's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signature {
    pub(super) version: u32,
    pub(super) starts: Vec<String>,
    pub(super) steps: Vec<StepSignature>,
}

/// Signature of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StepSignature {
    pub(super) step: String,
    #[serde(rename = "forth")]
    pub(super) forward: ActionSignature,
    #[serde(default, rename = "back")]
    pub(super) compensation: ActionSignature,
    #[serde(default)]
    pub(super) pivot: bool,
    #[serde(default)]
    pub(super) retired: bool,
}

/// Signature of a step's action in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ActionSignature {
    #[serde(default)]
    pub(super) local: bool,
    /// The event types of its command.
    #[serde(default)]
    pub(super) sends: Vec<String>,
    /// The event types that reply.
    #[serde(default)]
    pub(super) replies: Vec<String>,
}

/// Definition registered under a saga's name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Registered {
    pub(super) consumer: String,
    pub(super) definition: String,
    pub(super) version: i32,
    pub(super) steps: Vec<StepSignature>,
    /// Seconds since its last heartbeat.
    pub(super) seen_seconds: f64,
}

impl Signature {
    /// Returns a 64-bit FNV-1a hash. The hash is stored, so it must be the same in every version of
    /// the library and on every machine.
    pub(super) fn hash(&self) -> String {
        let mut parts = vec![self.version.to_string()];
        parts.extend(self.starts.iter().map(|start| format!("starts {start}")));
        for step in &self.steps {
            parts.push(format!(
                "step {} {} {}",
                step.step, step.pivot, step.retired
            ));
            for (name, action) in [("forth", &step.forward), ("back", &step.compensation)] {
                parts.push(format!("{name} {}", action.local));
                parts.extend(action.sends.iter().map(|sends| format!("sends {sends}")));
                parts.extend(action.replies.iter().map(|reply| format!("reply {reply}")));
            }
        }
        let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
        format!("{:016x}", fnv1a(bytes))
    }

    /// Checks whether a subscriber may run this definition beside those registered under the name.
    ///
    /// # Errors
    ///
    /// Returns the most recently seen definition of another subscriber if none of the registered
    /// definitions belongs to this subscriber or equals this one.
    pub(super) fn admit<'r>(
        &self,
        consumer: &str,
        registered: &'r [Registered],
    ) -> Result<(), &'r Registered> {
        let definition = self.hash();
        if registered
            .iter()
            .any(|other| other.consumer == consumer || other.definition == definition)
        {
            return Ok(());
        }
        registered
            .iter()
            .min_by(|a, b| a.seen_seconds.total_cmp(&b.seen_seconds))
            .map_or(Ok(()), Err)
    }
}

impl Registered {
    /// Returns the names of its steps.
    pub(super) fn step_names(&self) -> String {
        names(&self.steps)
    }
}

/// Returns the names of steps, for messages.
pub(super) fn names(steps: &[StepSignature]) -> String {
    steps
        .iter()
        .map(|step| step.step.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Returns the event types that reply to a step in any of these definitions, or `None` if none of
/// them has the step.
pub(super) fn replies(registered: &[Registered], step: &str, back: bool) -> Option<Vec<String>> {
    let steps: Vec<_> = registered
        .iter()
        .flat_map(|one| &one.steps)
        .filter(|one| one.step == step)
        .collect();
    if steps.is_empty() {
        return None;
    }
    let actions = steps.into_iter().map(|step| {
        if back {
            &step.compensation
        } else {
            &step.forward
        }
    });
    Some(
        actions
            .flat_map(|action| action.replies.iter().cloned())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(version: u32, steps: &[&str]) -> Signature {
        let step = |step: &&str| StepSignature {
            step: (*step).to_owned(),
            forward: ActionSignature {
                local: false,
                sends: vec!["Take".into()],
                replies: vec![format!("{step} done")],
            },
            ..StepSignature::default()
        };
        Signature {
            version,
            starts: vec!["Placed".into()],
            steps: steps.iter().map(step).collect(),
        }
    }

    fn registered(consumer: &str, signature: &Signature, seen_seconds: f64) -> Registered {
        let (definition, steps) = (signature.hash(), signature.steps.clone());
        Registered {
            consumer: consumer.into(),
            definition,
            version: signature.version.cast_signed(),
            steps,
            seen_seconds,
        }
    }

    #[test]
    fn a_name_belongs_to_the_subscriber_that_has_it_and_to_those_with_the_same_definition() {
        let (one, two, other) = (
            signature(1, &["reserve", "pay"]),
            signature(2, &["reserve"]),
            signature(1, &["invite"]),
        );
        assert_eq!(one.admit("orders", &[]), Ok(()));
        let there = [
            registered("orders", &one, 90.0),
            registered("orders", &two, 4.0),
        ];
        assert_eq!(
            signature(3, &["send"]).admit("orders", &there),
            Ok(()),
            "a new version of the owning subscriber"
        );
        assert_eq!(
            one.admit("orders", &there),
            Ok(()),
            "an old version of the owning subscriber"
        );
        assert_eq!(
            two.admit("shop-orders", &there),
            Ok(()),
            "a renamed subscriber with the same definition"
        );
        assert_eq!(other.admit("guests", &there), Err(&there[1]));
        assert_eq!(
            signature(2, &["reserve", "pay"]).admit("guests", &there),
            Err(&there[1]),
            "a different version is a different definition"
        );
    }

    #[test]
    fn the_hash_is_the_same_in_every_version_and_differs_by_every_part() {
        let one = signature(1, &["reserve", "pay"]);
        assert_eq!(one.hash(), "1d979965ff07c06e");
        let mut others = vec![
            signature(2, &["reserve", "pay"]),
            signature(1, &["pay", "reserve"]),
            signature(1, &["reserve"]),
        ];
        let changes: [fn(&mut Signature); 6] = [
            |one| one.starts.clear(),
            |one| one.steps[0].retired = true,
            |one| one.steps[0].pivot = true,
            |one| one.steps[0].forward.sends.clear(),
            |one| one.steps[0].forward.replies.clear(),
            |one| one.steps[0].compensation.local = true,
        ];
        others.extend(changes.map(|change| {
            let mut other = one.clone();
            change(&mut other);
            other
        }));
        assert!(others.iter().all(|other| other.hash() != one.hash()));
    }

    #[test]
    fn the_replies_to_a_step_are_those_of_all_definitions_that_have_it() {
        let there = [
            registered("orders", &signature(1, &["reserve", "pay"]), 9.0),
            registered("orders", &signature(2, &["reserve"]), 0.0),
        ];
        assert_eq!(replies(&there, "pay", false), Some(vec!["pay done".into()]));
        assert_eq!(replies(&there, "pay", true), Some(Vec::new()));
        assert_eq!(
            replies(&there, "send", false),
            None,
            "no registered definition has the step"
        );
    }
}
