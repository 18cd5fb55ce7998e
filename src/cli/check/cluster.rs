//! Checks of the Kafka cluster: its state is read once, then judged by pure functions.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Finding, Findings};
use crate::{
    cli::{config::Config, exit::Failure},
    kafka::{Cluster, Topic},
    relay::{DeliveryGuarantee, startup::transaction_timeout},
};

/// Time limit of each request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the findings about the brokers and these topics.
pub(super) async fn look(config: &Config, topics: &[String]) -> Result<Vec<Finding>, Failure> {
    let settings = config
        .kafka
        .clone()
        .ok_or_else(|| Failure::Failed("no brokers are configured".into()))?;
    let mut findings = Findings::of("kafka");
    match Cluster::ask(&settings, topics, TIMEOUT).await {
        Ok(cluster) => judge(&cluster, config, &mut findings),
        Err(error) => {
            let reason = error.to_string();
            findings.fail(
                "reachable",
                format!("no response from {}: {reason}", settings.brokers),
                remedy(&reason),
            );
        }
    }
    Ok(findings.list)
}

fn remedy(reason: &str) -> &'static str {
    let reason = reason.to_ascii_lowercase();
    match () {
        () if reason.contains("sasl") || reason.contains("authentication") => {
            "check kafka.properties: security.protocol, sasl.mechanism, sasl.username, \
             sasl.password"
        }
        () if reason.contains("ssl") => {
            "check kafka.properties: security.protocol, ssl.ca.location"
        }
        () if reason.contains("resolve") => {
            "check the host names in --brokers, and the advertised.listeners of the brokers"
        }
        () if reason.contains("disconnected") || reason.contains("timed out") => {
            "check whether the listener expects TLS or SASL (kafka.properties \
             security.protocol), and that the advertised.listeners are reachable from here"
        }
        () => "check that the brokers are running, and check --brokers",
    }
}

fn judge(cluster: &Cluster, config: &Config, findings: &mut Findings) {
    let plural = if cluster.brokers == 1 { "" } else { "s" };
    let id = cluster.id.as_deref().unwrap_or("unknown");
    findings.ok(
        "reachable",
        format!("{} broker{plural}, cluster {id}", cluster.brokers),
    );
    if cluster.brokers == 1 {
        findings.warn(
            "replication",
            "one broker: all events are lost with it",
            "run three brokers in production",
        );
    }
    judge_transactions(cluster, config, findings);
    if cluster.topics.is_empty() {
        findings.ok("topics", "no event yet, so no topic to check");
    }
    for (name, topic) in &cluster.topics {
        judge_topic(name, topic, cluster, config, findings);
    }
    if config.topics.create {
        let mut settings = cluster.defaults.clone();
        // The broker's default has another name than the topic's setting.
        if let Some(bytes) = settings.get("message.max.bytes").cloned() {
            settings.insert("max.message.bytes".into(), bytes);
        }
        let default = || {
            cluster
                .defaults
                .get("default.replication.factor")
                .and_then(|text| text.parse().ok())
        };
        if let Some(replicas) = config
            .topics
            .replication
            .and_then(|count| usize::try_from(count).ok())
            .or_else(default)
        {
            judge_durability("new topics", replicas, &settings, cluster, config, findings);
        }
    }
}

/// Checks the brokers' limit on transactions, which exactly-once delivery uses. Adds no finding if
/// the limit cannot be read.
fn judge_transactions(cluster: &Cluster, config: &Config, findings: &mut Findings) {
    let limit = cluster
        .defaults
        .get(transaction_timeout::LIMIT)
        .and_then(|text| text.parse().ok())
        .map(Duration::from_millis);
    let Some(limit) = limit.filter(|limit| {
        config.delivery == DeliveryGuarantee::ExactlyOnce && *limit < transaction_timeout::WANTED
    }) else {
        return;
    };
    let (name, milliseconds) = (transaction_timeout::LIMIT, limit.as_millis());
    let remedy = format!(
        "set {name} = {} or more on every broker",
        transaction_timeout::WANTED.as_millis()
    );
    if limit < transaction_timeout::LEAST {
        let text = format!(
            "{name} {milliseconds} is shorter than the shortest transaction \
             of a relay that delivers exactly once"
        );
        findings.fail(
            "transactions",
            text,
            format!("{remedy}, or run with --delivery at-least-once"),
        );
    } else {
        let text = format!(
            "{name} {milliseconds} limits the relay's transactions: \
             a longer broker outage causes events to be sent again"
        );
        findings.warn("transactions", text, remedy);
    }
}

fn judge_topic(
    name: &str,
    topic: &Topic,
    cluster: &Cluster,
    config: &Config,
    findings: &mut Findings,
) {
    match topic {
        Topic::There {
            partitions,
            replicas,
            settings,
        } => {
            if judge_durability(name, *replicas, settings, cluster, config, findings) {
                findings.ok(
                    name,
                    format!("{partitions} partitions, {replicas} replicas"),
                );
            }
        }
        Topic::Missing if config.topics.create => {
            findings.ok(name, "created when its first event arrives")
        }
        Topic::Missing => findings.fail(
            name,
            "does not exist, and the relay is not allowed to create it",
            format!(
                "kafka-topics.sh --bootstrap-server … --create --topic {name} \
                 --partitions 6 --replication-factor 3; or --create-topics"
            ),
        ),
        Topic::Refused(reason) => {
            findings.fail(
                name,
                reason.as_str(),
                format!("grant Describe and Write on the topic {name} to the relay's principal"),
            );
        }
    }
}

/// Adds findings about settings that lose or refuse events. Returns `true` if there are none.
fn judge_durability(
    name: &str,
    replicas: usize,
    settings: &BTreeMap<String, String>,
    cluster: &Cluster,
    config: &Config,
    findings: &mut Findings,
) -> bool {
    let before = findings.list.len();
    let number = |setting: &str| {
        settings
            .get(setting)
            .and_then(|text| text.parse::<usize>().ok())
    };
    judge_replicas(name, replicas, cluster, findings);
    judge_insync(name, replicas, number("min.insync.replicas"), findings);
    if settings
        .get("unclean.leader.election.enable")
        .is_some_and(|value| value == "true")
    {
        findings.warn(
            name,
            "unclean.leader.election.enable is true: a lagging broker may become leader \
             and drop events",
            "set it to false",
        );
    }
    if let Some(most) = number("max.message.bytes").filter(|most| *most < config.message_bytes_max)
    {
        let text = format!(
            "max.message.bytes {most} is less than kafka.max_message_bytes {}",
            config.message_bytes_max
        );
        findings.warn(
            name,
            text,
            "raise it on the topic, or lower --max-message-bytes",
        );
    }
    findings.list.len() == before
}

/// Adds a finding about a number of replicas that the brokers cannot hold or that loses events.
fn judge_replicas(name: &str, replicas: usize, cluster: &Cluster, findings: &mut Findings) {
    if replicas > cluster.brokers {
        let text = format!(
            "{replicas} replicas on {} brokers: the topic cannot be created",
            cluster.brokers
        );
        findings.fail(
            name,
            text,
            "lower --topic-replication, or the brokers' default.replication.factor",
        );
    } else if replicas < 2 && cluster.brokers > 1 {
        findings.warn(
            name,
            "one replica: events are lost if its broker fails",
            "give the topic three replicas (topics.replication = 3 for new ones)",
        );
    }
}

/// Adds a finding about a number of in-sync replicas that loses or refuses events.
fn judge_insync(name: &str, replicas: usize, least: Option<usize>, findings: &mut Findings) {
    match least {
        Some(least) if least > replicas => {
            findings.fail(
                name,
                format!(
                    "min.insync.replicas {least} is more than the {replicas} replicas: \
                     every write is refused"
                ),
                "lower min.insync.replicas or add replicas",
            );
        }
        Some(least) if replicas > 1 && least == replicas => {
            findings.warn(
                name,
                format!(
                    "min.insync.replicas {least} of {replicas} replicas: \
                     the relay waits whenever one broker is down"
                ),
                "set min.insync.replicas to one less than the replicas",
            );
        }
        Some(1) if replicas > 1 => {
            findings.warn(
                name,
                "min.insync.replicas 1: an event counts as delivered once one broker has it",
                "set min.insync.replicas = 2 on the topic",
            );
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::cli::config::{Layer, Need, Needs, resolve};

    fn config(create: bool) -> Config {
        let layer =
            Layer::of_environment(&[("TIDINGS_TOPICS_CREATE".to_owned(), create.to_string())]);
        resolve(
            vec![layer],
            Needs {
                database: Need::Unused,
                brokers: Need::Unused,
            },
        )
        .expect("a valid configuration")
    }

    fn topic(replicas: usize, settings: &[(&str, &str)]) -> Topic {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Topic::There {
            partitions: 6,
            replicas,
            settings,
        }
    }

    fn judged(brokers: usize, topic: Topic, create: bool) -> Vec<Finding> {
        let topics = BTreeMap::from([("order".to_owned(), topic)]);
        let mut findings = Findings::of("kafka");
        judge(
            &Cluster {
                id: None,
                brokers,
                topics,
                defaults: BTreeMap::new(),
            },
            &config(create),
            &mut findings,
        );
        findings.list
    }

    #[test]
    fn a_topic_that_keeps_its_events_has_nothing_to_put_right() {
        let settings = [
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
            ("max.message.bytes", "1048588"),
        ];
        assert!(
            judged(3, topic(3, &settings), false)
                .iter()
                .all(|finding| finding.state == State::Ok)
        );
    }

    #[test]
    fn whatever_loses_or_refuses_events_is_told_with_the_setting_that_decides_it() {
        let cases = [
            (3, topic(1, &[]), State::Warn, "one replica"),
            (
                3,
                topic(3, &[("min.insync.replicas", "1")]),
                State::Warn,
                "min.insync.replicas 1",
            ),
            (
                3,
                topic(3, &[("min.insync.replicas", "3")]),
                State::Warn,
                "one broker is down",
            ),
            (
                3,
                topic(2, &[("min.insync.replicas", "3")]),
                State::Fail,
                "every write is refused",
            ),
            (
                3,
                topic(3, &[("unclean.leader.election.enable", "true")]),
                State::Warn,
                "unclean.leader.election.enable",
            ),
            (
                3,
                topic(3, &[("max.message.bytes", "1000")]),
                State::Warn,
                "max.message.bytes 1000",
            ),
            (3, Topic::Missing, State::Fail, "does not exist"),
            (
                3,
                Topic::Refused("not authorized".into()),
                State::Fail,
                "not authorized",
            ),
        ];
        for (brokers, topic, state, text) in cases {
            let wrong: Vec<_> = judged(brokers, topic, false)
                .into_iter()
                .filter(|finding| finding.state != State::Ok)
                .collect();
            assert_eq!(wrong.len(), 1, "{text}: {wrong:?}");
            assert!(
                wrong[0].state == state
                    && wrong[0].text.contains(text)
                    && wrong[0].remedy.is_some(),
                "{wrong:?}"
            );
        }
        let single = judged(1, topic(1, &[]), false);
        assert_eq!(
            single
                .iter()
                .filter(|finding| finding.state == State::Warn)
                .count(),
            1,
            "one broker causes one warning: {single:?}"
        );
    }

    #[test]
    fn brokers_that_limit_transactions_are_told_of() {
        for (limit, state) in [
            ("500", Some(State::Fail)),
            ("10000", Some(State::Warn)),
            ("900000", None),
            ("?", None),
        ] {
            let defaults =
                BTreeMap::from([(transaction_timeout::LIMIT.to_owned(), limit.to_owned())]);
            let mut findings = Findings::of("kafka");
            judge_transactions(
                &Cluster {
                    brokers: 3,
                    defaults,
                    ..Cluster::default()
                },
                &config(true),
                &mut findings,
            );
            assert_eq!(
                findings.list.first().map(|finding| finding.state),
                state,
                "{limit}"
            );
        }
    }

    #[test]
    fn a_missing_topic_is_fine_when_the_relay_may_create_it() {
        assert!(
            judged(3, Topic::Missing, true)
                .iter()
                .all(|finding| finding.state == State::Ok)
        );
        let defaults = BTreeMap::from([("default.replication.factor".to_owned(), "1".to_owned())]);
        let mut findings = Findings::of("kafka");
        judge(
            &Cluster {
                id: None,
                brokers: 3,
                topics: BTreeMap::new(),
                defaults,
            },
            &config(true),
            &mut findings,
        );
        assert!(
            findings
                .list
                .iter()
                .any(|finding| finding.name == "new topics" && finding.state == State::Warn),
            "{:?}",
            findings.list
        );
    }
}
