//! Processes of the services. Each runs this program with the name of the service.

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

use super::Failure;
use super::servers::Servers;

/// Names of all services. The last one is the legacy system.
pub(crate) const NAMES: [&str; 6] = [
    "order",
    "payment",
    "inventory",
    "shipping",
    "notification",
    "legacy",
];

/// Services that the page can break. A broken service refuses commands and responds to requests
/// with an error.
pub(crate) const BREAKABLE: [&str; 3] = ["payment", "inventory", "shipping"];

/// Time limit for the start of the services. It is long, so that only a failure exceeds it and not
/// a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(240);

/// Processes of the services, killed on drop.
pub(crate) struct Processes {
    /// Address of each service, whether it runs or not.
    addresses: HashMap<&'static str, String>,
    /// Sockets that are bound to these addresses and do not listen. No other program receives the
    /// port of a service that is starting or was killed.
    _reserved: Vec<TcpSocket>,
    running: Mutex<HashMap<&'static str, Running>>,
    environment: Vec<(&'static str, Vec<(&'static str, String)>)>,
}

struct Running {
    process: Child,
    broken: bool,
}

impl Processes {
    pub(crate) fn start(servers: &Servers) -> Result<Self, Failure> {
        let (mut addresses, mut reserved) = (HashMap::new(), Vec::new());
        for name in NAMES {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseport(true)?;
            socket.bind(([127, 0, 0, 1], 0).into())?;
            addresses.insert(name, socket.local_addr()?.to_string());
            reserved.push(socket);
        }
        let environment = |name| {
            let listen = ("LISTEN", addresses[name].clone());
            (
                name,
                vec![
                    listen,
                    ("DATABASE_URL", servers.database_url(name)),
                    ("KAFKA_BROKERS", servers.brokers()),
                ],
            )
        };
        let environment = NAMES.map(environment).to_vec();
        let processes = Self {
            addresses,
            _reserved: reserved,
            running: Mutex::default(),
            environment,
        };
        for name in NAMES {
            processes.launch(name)?;
        }
        Ok(processes)
    }

    /// Waits until each service reports ready, on the route that an orchestrator uses.
    pub(crate) async fn ready(&self) -> Result<(), Failure> {
        let (http, patience) = (reqwest::Client::new(), Instant::now() + READY_WITHIN);
        for name in NAMES {
            let url = format!("http://{}/health/ready", self.address(name));
            while !http
                .get(&url)
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
            {
                if !self.is_running(name) || Instant::now() > patience {
                    return Err(format!("{name} is not ready in time").into());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    pub(crate) fn address(&self, name: &str) -> &str {
        &self.addresses[name]
    }

    /// Starts a service that is not running.
    pub(crate) fn launch(&self, name: &str) -> Result<(), Failure> {
        let (name, environment) = self
            .environment
            .iter()
            .find(|(known, _)| *known == name)
            .ok_or("no such service")?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !running.contains_key(name) {
            let environment = environment.iter().map(|(key, value)| (key, value));
            let process = Command::new(std::env::current_exe()?)
                .arg(name)
                .envs(environment)
                .stdin(Stdio::piped())
                .spawn()?;
            running.insert(
                name,
                Running {
                    process,
                    broken: false,
                },
            );
        }
        Ok(())
    }

    /// Kills a service with SIGKILL.
    pub(crate) fn kill(&self, name: &str) {
        if let Some(mut running) = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name)
        {
            let _ = running.process.kill();
            let _ = running.process.wait();
        }
    }

    /// Breaks or repairs a running service. A restarted process is not broken.
    pub(crate) async fn set_broken(&self, name: &str, broken: bool) -> Result<(), Failure> {
        let address = self
            .addresses
            .get(name)
            .filter(|_| BREAKABLE.contains(&name))
            .ok_or("no such service")?;
        let switch = if broken { "break" } else { "mend" };
        reqwest::Client::new()
            .post(format!("http://{address}/{switch}"))
            .send()
            .await?
            .error_for_status()?;
        if let Some(running) = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(name)
        {
            running.broken = broken;
        }
        Ok(())
    }

    pub(crate) fn is_broken(&self, name: &str) -> bool {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .is_some_and(|running| running.broken)
    }

    pub(crate) fn is_running(&self, name: &str) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running
            .get_mut(name)
            .is_some_and(|running| matches!(running.process.try_wait(), Ok(None)))
    }

    pub(crate) fn stop(&self) {
        NAMES.iter().for_each(|name| self.kill(name));
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.stop();
    }
}
