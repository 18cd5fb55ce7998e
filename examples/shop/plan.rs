//! The command line.

use super::Failure;

/// What is asked for.
pub(crate) struct Plan {
    /// Of the gateway; any that is free unless given.
    pub(crate) port: u16,
    /// None: a person plays.
    pub(crate) script: Option<Script>,
}

/// So many orders, and which service is killed in the middle.
pub(crate) struct Script {
    pub(crate) orders: usize,
    pub(crate) kill: Option<String>,
}

impl Plan {
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let (mut port, mut orders, mut kill) = (0, None, None);
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--port" => port = value()?.parse()?,
                "--orders" => orders = Some(value()?.parse()?),
                "--kill" => kill = Some(value()?.clone()),
                other => {
                    return Err(format!(
                        "`{other}` is none of --port PORT, --orders COUNT, --kill SERVICE"
                    )
                    .into());
                }
            }
        }
        let known = super::processes::NAMES;
        if let Some(name) = kill.as_deref().filter(|name| !known.contains(name)) {
            return Err(format!("`{name}` is none of {}", known.join(", ")).into());
        }
        let script = (orders.is_some() || kill.is_some()).then(|| Script {
            orders: orders.unwrap_or(1_000),
            kill,
        });
        Ok(Self { port, script })
    }
}
