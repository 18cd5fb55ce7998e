//! The command line.

use super::Failure;

/// Arguments of the program.
pub(crate) struct Plan {
    /// Port of the gateway. Defaults to any free port.
    pub(crate) port: u16,
    /// `None` for interactive use.
    pub(crate) script: Option<Script>,
}

/// Number of orders, and the service to kill halfway.
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
                        "unknown argument `{other}`; \
                         use --port PORT, --orders COUNT or --kill SERVICE"
                    )
                    .into());
                }
            }
        }
        let known = super::processes::NAMES;
        if let Some(name) = kill.as_deref().filter(|name| !known.contains(name)) {
            return Err(
                format!("unknown service `{name}`; use one of {}", known.join(", ")).into(),
            );
        }
        let script = (orders.is_some() || kill.is_some()).then(|| Script {
            orders: orders.unwrap_or(1_000),
            kill,
        });
        Ok(Self { port, script })
    }
}
