//! Where the history is played: servers of its own, and wires to them that can be cut.

use dev_services::{Kafka, KafkaCluster, KafkaOptions, Postgres, PostgresOptions, Proxy};
use sqlx::{Connection as _, PgConnection};

use super::plan::Plan;
use super::schedule::Kind;
use super::{Failure, relays, topic, writers};

/// A server that hangs is noticed by its own clients within these: what the lease and the stream rest on.
const POSTGRES: [(&str, &str); 3] = [
    ("wal_sender_timeout", "10s"),
    ("tcp_keepalives_idle", "5"),
    ("max_slot_wal_keep_size", "4GB"),
];

/// Idle transactional ids are forgotten after this long, and looked for this often.
const EXPIRY: [(&str, &str); 2] = [
    ("transactional.id.expiration.ms", "5000"),
    (
        "transaction.remove.expired.transaction.cleanup.interval.ms",
        "1000",
    ),
];

/// A transaction that stays open for longer is aborted by the broker. The relay adapts to it.
const MAX_TRANSACTION: [(&str, &str); 2] = [
    ("transaction.max.timeout.ms", "8000"),
    (
        "transaction.abort.timed.out.transaction.cleanup.interval.ms",
        "1000",
    ),
];

/// Rights are checked, and everything is allowed on a resource that has no entries.
const AUTHORIZER: [(&str, &str); 2] = [
    (
        "authorizer.class.name",
        "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    ),
    ("allow.everyone.if.no.acl.found", "true"),
];

/// Everything the writers and relays talk to.
pub(crate) struct Stage {
    pub(crate) primary: Postgres,
    pub(crate) standby: Option<Postgres>,
    pub(crate) brokers: Brokers,
    /// Between the relays and Postgres: cut and stalled.
    pub(crate) relay_wire: Proxy,
    /// Between the writers and Postgres: leads to the primary, whichever that is.
    pub(crate) service_wire: Proxy,
}

/// One broker or three.
pub(crate) enum Brokers {
    One(Kafka),
    Three(KafkaCluster),
}

/// What a relay is told.
#[derive(Clone, Debug)]
pub(crate) struct RelaySettings {
    pub(crate) database_url: String,
    pub(crate) brokers: String,
}

impl Stage {
    /// Starts the servers and makes tables and topics.
    ///
    /// # Errors
    /// When a server does not start.
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
    /// When a server does not start.
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

    /// For everybody but the relays.
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

    /// The brokers' own addresses, for the checker.
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
    /// When there are not three.
    pub(crate) fn kill_two_brokers(&mut self, which: usize) -> Result<(), Failure> {
        let Brokers::Three(cluster) = &mut self.brokers else {
            return Err("needs --brokers 3".into());
        };
        for broker in [which, which + 1] {
            cluster.broker(broker % KafkaCluster::BROKERS).kill()?;
        }
        Ok(())
    }

    /// Starts every broker that does not run.
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

    /// Waits until the standby has what it needs to take over without a loss: the slot, from 17 on, and every commit. Nobody can reach
    /// the primary from then on.
    pub(crate) fn prepare_fail_over(&self) -> Result<(), Failure> {
        let standby = self.standby.as_ref().ok_or("there is no standby")?;
        if self.primary.version() >= 17 {
            standby.wait_for_slot(&self.primary, relays::SLOT)?;
        }
        for wire in self.wires() {
            wire.refuse();
            wire.cut();
        }
        Ok(standby.catch_up_with(&self.primary)?)
    }

    /// Kills the primary and lets the standby take over; the new primary gets a standby of its own.
    pub(crate) fn fail_over(&mut self) -> Result<(), Failure> {
        let mut next = self.standby.take().ok_or("there is no standby")?;
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

/// The properties that the plan's faults need.
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
