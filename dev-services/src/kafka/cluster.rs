//! A cluster of three brokers that tolerates the loss of one.

use std::thread::sleep;
use std::time::Instant;

use crate::Error;

use super::node::{self, Node};
use super::{Kafka, KafkaOptions, Parts, SERVICE, START_LIMIT};

/// Properties of clusters, which [`KafkaOptions::set`] can override. Every record is stored on all
/// three brokers and acknowledged once two have it.
const REPLICATION: [(&str, &str); 7] = [
    ("default.replication.factor", "3"),
    ("min.insync.replicas", "2"),
    ("offsets.topic.replication.factor", "3"),
    ("transaction.state.log.replication.factor", "3"),
    ("transaction.state.log.min.isr", "2"),
    // Time after which a hanging follower leaves the in-sync replicas and the others continue.
    ("replica.lag.time.max.ms", "3000"),
    // Time to wait for a hanging controller; the default is 30 s.
    ("controller.socket.timeout.ms", "3000"),
];

/// A Kafka cluster of three brokers that are also its controllers.
///
/// One broker can be killed, stopped or paused without losing acknowledged records. With only one
/// running broker the cluster accepts nothing. It takes 450 MB.
#[derive(Debug)]
pub struct KafkaCluster {
    brokers: Vec<Kafka>,
}

impl KafkaCluster {
    /// Number of brokers, running or not: the smallest number that keeps a majority without one of
    /// them.
    pub const BROKERS: usize = 3;

    /// Starts three brokers. Returns when all of them respond.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Kafka::start`].
    pub fn start(options: KafkaOptions) -> Result<Self, Error> {
        let parts = Parts::find()?;
        let given = options.properties;
        let replication = REPLICATION
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let options = KafkaOptions {
            properties: replication.chain(given).collect(),
            ..options
        };
        crate::retry_if_port_is_taken(|| Self::launch(&parts, &options))
    }

    fn launch(parts: &Parts, options: &KafkaOptions) -> Result<Self, Error> {
        let proxies = (0..Self::BROKERS).map(|_| options.proxied.then(node::proxy).transpose());
        let proxies = proxies.collect::<Result<Vec<_>, _>>()?;
        let nodes = Node::cluster(proxies.iter().map(Option::as_ref));
        let brokers = nodes
            .iter()
            .zip(proxies)
            .map(|(node, proxy)| Kafka::prepare(parts, options, node, proxy));
        let mut cluster = Self {
            brokers: brokers.collect::<Result<_, _>>()?,
        };
        cluster.start_again()?;
        Ok(cluster)
    }

    /// Returns all addresses, for `bootstrap.servers`.
    pub fn brokers(&self) -> String {
        self.list(Kafka::brokers)
    }

    /// Returns all addresses for clients that connect through the proxies of the brokers.
    ///
    /// # Panics
    ///
    /// Panics if [`KafkaOptions::proxied`] is not set.
    pub fn proxied_brokers(&self) -> String {
        self.list(Kafka::proxied_brokers)
    }

    fn list(&self, address: impl Fn(&Kafka) -> String) -> String {
        self.brokers
            .iter()
            .map(address)
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Returns a broker, counted from 0, to be killed, stopped or paused. Its
    /// [`Kafka::start_again`] requires that a majority of the brokers is running.
    ///
    /// # Panics
    ///
    /// Panics if there is no broker with this number.
    pub fn broker(&mut self, number: usize) -> &mut Kafka {
        &mut self.brokers[number]
    }

    /// Starts all brokers that are not running. Returns when every broker responds.
    ///
    /// # Errors
    ///
    /// Returns an error if a broker does not respond within a minute.
    pub fn start_again(&mut self) -> Result<(), Error> {
        for broker in self
            .brokers
            .iter_mut()
            .filter(|broker| !broker.is_running())
        {
            broker.keeper.start(SERVICE)?;
        }
        let until = Instant::now() + START_LIMIT;
        for broker in &self.brokers {
            while !broker.answers() {
                broker.keeper.still_starting(SERVICE, until)?;
                sleep(crate::keeper::LOOK);
            }
            broker.keeper.still_starting(SERVICE, until)?;
        }
        Ok(())
    }
}
