//! Three brokers, of which any one may go.

use std::thread::sleep;
use std::time::Instant;

use crate::Error;

use super::node::{self, Node};
use super::{Kafka, KafkaOptions, Parts, SERVICE, START_LIMIT, probe};

/// What is told to clusters, before [`KafkaOptions::set`]: every record is on all three, and is acknowledged once two have it.
const REPLICATION: [(&str, &str); 7] = [
    ("default.replication.factor", "3"),
    ("min.insync.replicas", "2"),
    ("offsets.topic.replication.factor", "3"),
    ("transaction.state.log.replication.factor", "3"),
    ("transaction.state.log.min.isr", "2"),
    // A follower that hangs is left out after this, and the others go on.
    ("replica.lag.time.max.ms", "3000"),
    // … and a controller that hangs is waited for this long, not 30 s.
    ("controller.socket.timeout.ms", "3000"),
];

/// A Kafka of three brokers, each a controller too. One may be killed, stopped or paused, and what was acknowledged is still there;
/// without two of them nothing is accepted. Takes 450 MB.
#[derive(Debug)]
pub struct KafkaCluster {
    brokers: Vec<Kafka>,
}

impl KafkaCluster {
    /// How many brokers there are, running or not: the fewest that agree without one of them.
    pub const BROKERS: usize = 3;

    /// Starts three brokers and returns once all answer.
    ///
    /// # Errors
    /// As [`Kafka::start`].
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

    /// All addresses, for `bootstrap.servers`.
    pub fn brokers(&self) -> String {
        self.list(Kafka::brokers)
    }

    /// All addresses for clients that come through the brokers' proxies.
    ///
    /// # Panics
    /// If [`KafkaOptions::proxied`] did not ask for proxies.
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

    /// One of them, from 0, to be killed, stopped or paused. Its own [`Kafka::start_again`] needs a majority of the brokers to run.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn broker(&mut self, number: usize) -> &mut Kafka {
        &mut self.brokers[number]
    }

    /// Starts all that do not run, and returns once every one answers.
    ///
    /// # Errors
    /// When one of them does not answer within a minute.
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
            while !probe::answers(broker.port) {
                broker.keeper.still_starting(SERVICE, until)?;
                sleep(crate::keeper::LOOK);
            }
            broker.keeper.still_starting(SERVICE, until)?;
        }
        Ok(())
    }
}
