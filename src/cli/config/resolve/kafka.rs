//! Brokers and librdkafka properties of the configuration.

use super::{Need, Resolved};
use crate::{
    cli::config::{
        fault::Fault,
        key::{self, PROPERTIES},
    },
    kafka,
};

impl Resolved {
    /// Returns the brokers and librdkafka's properties, and reports their faults.
    pub(super) fn kafka(&mut self, needed: Need) -> Option<kafka::Settings> {
        let properties = self
            .properties
            .iter()
            .map(|(name, (value, _))| (name.clone(), value.clone()))
            .collect();
        let settings = kafka::Settings {
            brokers: self.text(&key::BROKERS),
            properties,
        };
        let faults = settings.faults();
        let limited = self.refuse_message_limit();
        let sound = faults.is_empty() && !limited;
        for fault in faults {
            let place = self
                .properties
                .get(&fault.property)
                .map(|(_, place)| place.clone());
            let (problem, remedy) = match fault.reason.rsplit_once("; ") {
                Some((problem, remedy)) => (problem.to_owned(), remedy.to_owned()),
                None => (fault.reason, "change it or remove it".to_owned()),
            };
            let key = format!("{PROPERTIES}.{}", fault.property);
            self.faults.push(Fault {
                key,
                value: Some(format!("{:?}", fault.value)),
                place,
                problem,
                remedy,
            });
        }
        if needed == Need::Unused {
            return None;
        }
        if !self.meant.contains_key(key::BROKERS.path) {
            if needed == Need::Required {
                self.missing(&key::BROKERS);
            }
            return None;
        }
        if let Some(problem) = settings.brokers_fault() {
            self.wrong(
                &key::BROKERS,
                problem,
                "write host:port, several separated by commas".into(),
            );
        }
        if let Some(problem) = sound.then(|| settings.combination_fault()).flatten() {
            let remedy = "change the property in the message".to_owned();
            self.faults.push(Fault {
                key: PROPERTIES.into(),
                value: None,
                place: None,
                problem: format!("are not a valid combination: {problem}"),
                remedy,
            });
        }
        Some(settings)
    }

    /// Reports an error if `message.max.bytes` is set, because the relay sets it from its own key.
    /// Returns `true` if it is set.
    fn refuse_message_limit(&mut self) -> bool {
        const LIMIT: &str = "message.max.bytes";
        let Some((value, place)) = self.properties.get(LIMIT).cloned() else {
            return false;
        };
        let (problem, remedy) = (
            "is set by Tidings".to_owned(),
            "use kafka.max_message_bytes".to_owned(),
        );
        let key = format!("{PROPERTIES}.{LIMIT}");
        self.faults.push(Fault {
            key,
            value: Some(format!("{value:?}")),
            place: Some(place),
            problem,
            remedy,
        });
        true
    }
}
