//! A process for each service: this program once more, with the service's name.

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Failure;
use super::servers::Servers;

/// Every service there is; the last one is of before.
pub(crate) const NAMES: [&str; 6] = ["order", "payment", "inventory", "shipping", "notification", "legacy"];

/// The services' processes; killed when this is dropped.
pub(crate) struct Processes {
    /// Where each listens, whether it runs or not.
    addresses: HashMap<&'static str, String>,
    running: Mutex<HashMap<&'static str, Child>>,
    environment: Vec<(&'static str, Vec<(&'static str, String)>)>,
}

impl Processes {
    pub(crate) fn start(servers: &Servers) -> Result<Self, Failure> {
        let mut addresses = HashMap::new();
        for name in NAMES {
            // Free a moment ago.
            addresses.insert(name, std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string());
        }
        let environment = |name| {
            let listen = ("LISTEN", addresses[name].clone());
            (name, vec![listen, ("DATABASE_URL", servers.database_url(name)), ("KAFKA_BROKERS", servers.brokers())])
        };
        let environment = NAMES.map(environment).to_vec();
        let processes = Self { addresses, running: Mutex::default(), environment };
        for name in NAMES {
            processes.launch(name)?;
        }
        Ok(processes)
    }

    /// Waits until each says that it is ready: by the routes that an orchestrator asks.
    pub(crate) async fn ready(&self) -> Result<(), Failure> {
        let (http, patience) = (reqwest::Client::new(), Instant::now() + Duration::from_secs(60));
        for name in NAMES {
            let url = format!("http://{}/health/ready", self.address(name));
            while !http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                if !self.is_running(name) || Instant::now() > patience {
                    return Err(format!("{name} does not get ready").into());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    pub(crate) fn address(&self, name: &str) -> &str {
        &self.addresses[name]
    }

    /// Starts a service that does not run.
    pub(crate) fn launch(&self, name: &str) -> Result<(), Failure> {
        let (name, environment) = self.environment.iter().find(|(known, _)| *known == name).ok_or("no such service")?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !running.contains_key(name) {
            let environment = environment.iter().map(|(key, value)| (key, value));
            let child = Command::new(std::env::current_exe()?).arg(name).envs(environment).stdin(Stdio::piped()).spawn()?;
            running.insert(name, child);
        }
        Ok(())
    }

    /// `kill -9`.
    pub(crate) fn kill(&self, name: &str) {
        if let Some(mut child) = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(name) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn is_running(&self, name: &str) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get_mut(name).is_some_and(|child| matches!(child.try_wait(), Ok(None)))
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
