//! Parts of a definition that the machine, the subscriber and the registration read.

use std::time::Duration;

use super::Saga;
use super::action::{Action, Kind};
use crate::saga::machine::{Shape, StepShape};
use crate::saga::signature::{Signature, StepSignature};

impl<S> Saga<S> {
    /// Returns the part of the definition that the machine needs.
    pub(crate) fn shape(&self) -> Shape {
        let steps = self.steps.iter().map(|step| StepShape {
            name: step.name.clone(),
            forward: step.forward.shape(),
            compensation: step.compensation.shape(),
            timeout: step.timeout,
            retry: step.retry.clone(),
            pivot: step.pivot,
            retired: step.retired,
        });
        Shape {
            steps: steps.collect(),
            within: self.within,
        }
    }

    pub(in crate::saga) fn step_names(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| step.name.as_str())
    }

    /// Returns the errors in the definition.
    pub(in crate::saga) fn faults(&self) -> Vec<String> {
        let mut faults = self.faults.clone();
        if self.name.is_empty() || self.name.len() > 255 {
            faults.push("its name must have 1 to 255 bytes".into());
        }
        if self.steps.iter().all(|step| step.retired) {
            faults.push("it has no step that is not retired".into());
        }
        if i32::try_from(self.version).map_or(true, |version| version < 1) {
            faults.push("its version must be from 1 to 2147483647".into());
        }
        faults
            .into_iter()
            .map(|fault| format!("saga `{}`: {fault}", self.name))
            .collect()
    }

    /// Returns every kind of event that starts the saga or replies to a step.
    pub(in crate::saga) fn kinds(&self) -> Vec<Kind> {
        let replies = self
            .steps
            .iter()
            .flat_map(|step| [&step.forward, &step.compensation])
            .flat_map(Action::replies);
        let all = self
            .starts
            .iter()
            .map(|start| start.kind)
            .chain(replies.map(|reply| reply.kind));
        all.fold(Vec::new(), |mut kinds, kind| {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
            kinds
        })
    }

    /// Returns the aggregates whose events reply to a step.
    pub(in crate::saga) fn reply_aggregates(&self) -> Vec<&'static str> {
        let replies = self.steps.iter().flat_map(|step| {
            step.forward
                .replies()
                .iter()
                .chain(step.compensation.replies())
        });
        let mut all: Vec<_> = replies.map(|reply| reply.kind.aggregate).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Returns the part of the definition that another process can compare.
    pub(in crate::saga) fn signature(&self) -> Signature {
        let steps = self.steps.iter().map(|step| StepSignature {
            step: step.name.clone(),
            forward: step.forward.signature(),
            compensation: step.compensation.signature(),
            pivot: step.pivot,
            retired: step.retired,
        });
        let starts = self
            .starts
            .iter()
            .flat_map(|start| start.kind.types)
            .map(|start| (*start).to_owned());
        Signature {
            version: self.version,
            starts: starts.collect(),
            steps: steps.collect(),
        }
    }

    pub(in crate::saga) fn action(&self, step: &str, back: bool) -> Option<&Action<S>> {
        let step = self.steps.iter().find(|candidate| candidate.name == step)?;
        Some(if back {
            &step.compensation
        } else {
            &step.forward
        })
    }

    pub(in crate::saga) fn timeout_of(&self, step: &str) -> Option<Duration> {
        self.steps
            .iter()
            .find(|candidate| candidate.name == step)?
            .timeout
    }
}
