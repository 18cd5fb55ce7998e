//! Report of all health checks. Pure.

use std::sync::Arc;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use super::Status;

/// Report of all health checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The results of the checks, in the order in which the checks were added.
    pub checks: Vec<Checked>,
}

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Name of the check.
    pub name: Arc<str>,
    /// Status that the check reported.
    pub status: Status,
}

impl Report {
    /// Returns `true` if no check fails. A degraded check does not fail, and a report without
    /// checks is ready.
    pub fn is_ready(&self) -> bool {
        !self
            .checks
            .iter()
            .any(|check| matches!(check.status, Status::Failing(_)))
    }
}

// === impl Serialize ===

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Report", 2)?;
        fields.serialize_field(
            "status",
            if self.is_ready() {
                "ready"
            } else {
                "not ready"
            },
        )?;
        fields.serialize_field("checks", &self.checks)?;
        fields.end()
    }
}

impl Serialize for Checked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (status, text) = match &self.status {
            Status::Ok(text) => ("ok", text),
            Status::Degraded(text) => ("degraded", text),
            Status::Failing(text) => ("failing", text),
        };
        let mut fields = serializer.serialize_struct("Checked", 3)?;
        fields.serialize_field("name", &*self.name)?;
        fields.serialize_field("status", status)?;
        fields.serialize_field("text", text)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(statuses: &[Status]) -> Report {
        Report {
            checks: statuses
                .iter()
                .map(|status| Checked {
                    name: "x".into(),
                    status: status.clone(),
                })
                .collect(),
        }
    }

    #[test]
    fn ready_is_what_nothing_fails_of() {
        let (ok, degraded, failing) = (
            Status::Ok("a".into()),
            Status::Degraded("b".into()),
            Status::Failing("c".into()),
        );
        assert!(report(&[]).is_ready());
        assert!(report(&[ok.clone(), degraded.clone()]).is_ready());
        assert!(!report(&[ok, degraded, failing]).is_ready());
    }

    #[test]
    fn each_state_is_told_with_its_text() {
        let report = report(&[
            Status::Ok(String::new()),
            Status::Degraded("slow".into()),
            Status::Failing("gone".into()),
        ]);
        let expected = concat!(
            r#"{"status":"not ready","checks":[{"name":"x","status":"ok","text":""},"#,
            r#"{"name":"x","status":"degraded","text":"slow"},"#,
            r#"{"name":"x","status":"failing","text":"gone"}]}"#
        );
        assert_eq!(
            serde_json::to_string(&report).expect("the report serializes"),
            expected
        );
    }
}
