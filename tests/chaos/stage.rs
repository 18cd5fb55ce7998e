//! Environment of a history: its own servers, and proxies to them that can be cut.

use dev_services::{Kafka, KafkaCluster, KafkaOptions, Postgres, PostgresOptions, Proxy};
use sqlx::{Connection as _, PgConnection};

use super::plan::Plan;
use super::schedule::Kind;
use super::{Failure, relays, topic, writers};

/// Short timeouts, so that Postgres notices a lost client soon, and a limit for the WAL that a slot
/// retains. The lease and the replication stream depend on them.
const POSTGRES: [(&str, &str); 3] = [
    ("wal_sender_timeout", "10s"),
    ("tcp_keepalives_idle", "5"),
    ("max_slot_wal_keep_size", "4GB"),
];

/// The time after which the broker removes idle transactional ids, and the interval of its search.
const EXPIRY: [(&str, &str); 2] = [
    ("transactional.id.expiration.ms", "5000"),
    (
        "transaction.remove.expired.transaction.cleanup.interval.ms",
        "1000",
    ),
];

/// The broker aborts a transaction that stays open for longer. The relay adapts its own limit.
const MAX_TRANSACTION: [(&str, &str); 2] = [
    ("transaction.max.timeout.ms", "8000"),
    (
        "transaction.abort.timed.out.transaction.cleanup.interval.ms",
        "1000",
    ),
];

/// The broker checks ACLs and allows every operation on a resource without ACLs.
const AUTHORIZER: [(&str, &str); 2] = [
    (
        "authorizer.class.name",
        "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    ),
    ("allow.everyone.if.no.acl.found", "true"),
];

/// All servers that the writers and relays connect to.
pub(crate) struct Stage {
    pub(crate) primary: Postgres,
    pub(crate) standby: Option<Postgres>,
    pub(crate) brokers: Brokers,
    /// The proxy between the relays and Postgres, which faults cut and stall.
    pub(crate) relay_wire: Proxy,
    /// The proxy between the writers and Postgres. It always leads to the current primary.
    pub(crate) service_wire: Proxy,
}

/// One broker or three.
pub(crate) enum Brokers {
    One(Kafka),
    Three(KafkaCluster),
}

/// The settings of a relay.
#[derive(Clone, Debug)]
pub(crate) struct RelaySettings {
    pub(crate) database_url: String,
    pub(crate) brokers: String,
}

impl Stage {
    /// Starts the servers and creates tables and topics.
    ///
    /// # Errors
    ///
    /// Returns an error if a server does not start.
    pub(crate) async fn build(plan: &Plan) -> Result<Self, Failure> {
        let fails_over = plan
            .faults
            .iter()
            .any(|kind| matches!(kind, Kind::FailOver | Kind::FailOverWithLoss));
        let stage = Self::start(plan.brokers == 3, kafka_options(plan), fails_over).await?;
        let mut session = PgConnection::connect(&stage.service_url()).await?;
        writers::create_accounts(&mut session).await?;
        topic::create(&stage.brokers(), plan).await?;
        Ok(stage)
    }

    /// Starts the servers and creates the library's tables.
    ///
    /// # Errors
    ///
    /// Returns an error if a server does not start.
    pub(crate) async fn start(
        three: bool,
        kafka: KafkaOptions,
        with_standby: bool,
    ) -> Result<Self, Failure> {
        let kafka = kafka.proxied(true);
        let (postgres, kafka) = tokio::join!(
            tokio::task::spawn_blocking(move || start_postgres(with_standby)),
            tokio::task::spawn_blocking(move || {
                let options = kafka;
                if three {
                    KafkaCluster::start(options).map(Brokers::Three)
                } else {
                    Kafka::start(options).map(Brokers::One)
                }
            })
        );
        let ((primary, standby), brokers) = (postgres??, kafka??);
        let (relay_wire, service_wire) =
            (Proxy::to(primary.address())?, Proxy::to(primary.address())?);
        let stage = Self {
            primary,
            standby,
            brokers,
            relay_wire,
            service_wire,
        };
        tidings::migrate(&sqlx::PgPool::connect(&stage.service_url()).await?).await?;
        Ok(stage)
    }

    /// Returns the database URL for all clients except the relays.
    pub(crate) fn service_url(&self) -> String {
        url(&self.service_wire)
    }

    pub(crate) fn relay_settings(&self) -> RelaySettings {
        let brokers = match &self.brokers {
            Brokers::One(kafka) => kafka.proxied_brokers(),
            Brokers::Three(cluster) => cluster.proxied_brokers(),
        };
        RelaySettings {
            database_url: url(&self.relay_wire),
            brokers,
        }
    }

    /// Returns the addresses of the brokers without proxies, for the checker.
    pub(crate) fn brokers(&self) -> String {
        match &self.brokers {
            Brokers::One(kafka) => kafka.brokers(),
            Brokers::Three(cluster) => cluster.brokers(),
        }
    }

    pub(crate) fn broker(&mut self, which: usize) -> &mut Kafka {
        match &mut self.brokers {
            Brokers::One(kafka) => kafka,
            Brokers::Three(cluster) => cluster.broker(which % KafkaCluster::BROKERS),
        }
    }

    /// Kills two of three brokers.
    ///
    /// # Errors
    ///
    /// Returns an error if the stage does not have three brokers.
    pub(crate) fn kill_two_brokers(&mut self, which: usize) -> Result<(), Failure> {
        let Brokers::Three(cluster) = &mut self.brokers else {
            return Err("the fault needs --brokers 3".into());
        };
        for broker in [which, which + 1] {
            cluster.broker(broker % KafkaCluster::BROKERS).kill()?;
        }
        Ok(())
    }

    /// Starts every broker that is not running.
    pub(crate) fn start_brokers(&mut self) -> Result<(), Failure> {
        match &mut self.brokers {
            Brokers::One(kafka) => kafka.start_again()?,
            Brokers::Three(cluster) => cluster.start_again()?,
        }
        Ok(())
    }

    pub(crate) fn describe(&self) -> String {
        let kafka = match &self.brokers {
            Brokers::One(kafka) => kafka.describe().to_owned(),
            Brokers::Three(_) => "three brokers".to_owned(),
        };
        format!("{}; {kafka}", self.primary.describe())
    }

    /// Waits until the standby can take over without a loss: it needs the slot (PostgreSQL 17 and
    /// later) and every commit. Afterwards the primary accepts no connection through the proxies.
    pub(crate) fn prepare_fail_over(&self) -> Result<(), Failure> {
        let standby = self.standby.as_ref().ok_or("the stage has no standby")?;
        if self.primary.version() >= 17 {
            standby.wait_for_slot(&self.primary, relays::SLOT)?;
        }
        for wire in self.wires() {
            wire.refuse();
            wire.cut();
        }
        Ok(standby.catch_up_with(&self.primary)?)
    }

    /// Kills the primary and promotes the standby. The new primary gets its own standby.
    pub(crate) fn fail_over(&mut self) -> Result<(), Failure> {
        let mut next = self.standby.take().ok_or("the stage has no standby")?;
        self.primary.kill()?;
        next.promote()?;
        self.standby = Some(next.standby()?);
        self.primary = next;
        for wire in self.wires() {
            wire.point_to(self.primary.address());
            wire.cut();
            wire.accept();
        }
        Ok(())
    }

    fn wires(&self) -> [&Proxy; 2] {
        [&self.relay_wire, &self.service_wire]
    }
}

/// Returns the broker properties that the plan's faults need.
fn kafka_options(plan: &Plan) -> KafkaOptions {
    let groups: [(Kind, &[(&str, &str)]); 3] = [
        (Kind::ExpireProducers, &EXPIRY),
        (Kind::AbortTransactions, &MAX_TRANSACTION),
        (Kind::RevokeAcls, &AUTHORIZER),
    ];
    let asked = groups
        .into_iter()
        .filter(|(kind, _)| plan.faults.contains(kind))
        .flat_map(|(_, properties)| properties);
    asked.fold(KafkaOptions::new(), |options, (name, value)| {
        options.set(*name, *value)
    })
}

fn start_postgres(with_standby: bool) -> Result<(Postgres, Option<Postgres>), dev_services::Error> {
    let options = POSTGRES
        .iter()
        .fold(PostgresOptions::new(), |options, (name, value)| {
            options.set(*name, *value)
        });
    let mut primary = Postgres::start(options)?;
    let standby = with_standby.then(|| primary.standby()).transpose()?;
    Ok((primary, standby))
}

fn url(wire: &Proxy) -> String {
    format!("postgres://postgres@{}/postgres", wire.address())
}
