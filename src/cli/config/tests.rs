//! Tests from layers to the configuration or its errors.

use super::*;
use crate::relay::{ExistingRows, OutboxField, OutboxRows, Placement};

const RELAY: Needs = Needs {
    database: Need::Required,
    brokers: Need::Required,
};
const URL: &str = "postgres://ann:hunter2@db/shop";

fn environment(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn flags(flags: &[(&str, &str)]) -> Layer {
    let flags: Vec<_> = flags
        .iter()
        .map(|(flag, value)| {
            (
                KEYS.iter()
                    .copied()
                    .find(|key| key.flag == *flag)
                    .expect("a flag"),
                (*value).to_owned(),
            )
        })
        .collect();
    Layer::of_flags(&flags, &[])
}

fn resolved(
    file: &str,
    variables: &[(&str, &str)],
    given: &[(&str, &str)],
) -> Result<Config, Vec<Fault>> {
    let layers = vec![
        Layer::of_file(Path::new("t.toml"), file),
        Layer::of_environment(&environment(variables)),
        flags(given),
    ];
    resolve(layers, RELAY)
}

fn minimal(file: &str) -> Result<Config, Vec<Fault>> {
    resolved(
        file,
        &[("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:9092")],
        &[],
    )
}

fn entry<'a>(config: &'a Config, key: &str) -> (&'a str, String) {
    let entry = config
        .entries
        .iter()
        .find(|entry| entry.key == key)
        .expect("the key is shown");
    (
        entry.value.as_deref().unwrap_or("-"),
        entry.place.to_string(),
    )
}

#[test]
fn a_flag_wins_over_the_environment_and_the_environment_over_the_file() {
    let file = "name = 'file'\nschema = 'file'\nshutdown_grace = '1m'\n";
    let variables = [
        ("DATABASE_URL", URL),
        ("KAFKA_BROKERS", "b:9092"),
        ("TIDINGS_NAME", "env"),
        ("TIDINGS_SCHEMA", "env"),
    ];
    let config = resolved(file, &variables, &[("name", "flag")]).expect("a valid configuration");
    assert_eq!(entry(&config, "name"), ("flag", "flag --name".into()));
    assert_eq!(
        entry(&config, "schema"),
        ("env", "environment TIDINGS_SCHEMA".into())
    );
    assert_eq!(entry(&config, "shutdown_grace"), ("1m", "t.toml:3".into()));
    assert_eq!(entry(&config, "log.format"), ("human", "default".into()));
    assert_eq!(
        (
            config.name.as_str(),
            config.schema.as_str(),
            config.shutdown_grace.as_secs()
        ),
        ("flag", "env", 60)
    );
}

#[test]
fn a_variable_of_its_own_wins_over_a_shared_one_and_an_empty_one_is_unset() {
    let variables = [
        ("DATABASE_URL", URL),
        ("KAFKA_BROKERS", "shared:1"),
        ("TIDINGS_KAFKA_BROKERS", "own:1"),
        ("TIDINGS_NAME", ""),
    ];
    let config = resolved("", &variables, &[]).expect("a valid configuration");
    assert_eq!(
        entry(&config, "kafka.brokers"),
        ("own:1", "environment TIDINGS_KAFKA_BROKERS".into())
    );
    assert_eq!(config.name, "tidings");
}

#[test]
fn a_value_that_loses_is_not_looked_at() {
    let variables = [
        ("DATABASE_URL", URL),
        ("KAFKA_BROKERS", "b:9092"),
        ("TIDINGS_SHUTDOWN_GRACE", "soon"),
    ];
    assert!(resolved("", &variables, &[("shutdown-grace", "5s")]).is_ok());
}

#[test]
fn every_key_can_be_given_in_the_file_in_the_environment_and_as_a_flag() {
    for key in KEYS {
        let value = example(key);
        let quoted = match key.kind {
            Kind::Boolean | Kind::Integer(..) => value.to_owned(),
            _ => format!("{value:?}"),
        };
        let file = match key.path.split_once('.') {
            Some((section, name)) => format!("[{section}]\n{name} = {quoted}\n"),
            None => format!("{} = {quoted}\n", key.path),
        };
        // The last two are the keys that other keys depend on.
        let base = [
            ("DATABASE_URL", URL),
            ("KAFKA_BROKERS", "b:9092"),
            ("TIDINGS_OUTBOX_TABLE", "public.outbox"),
            ("TIDINGS_OUTBOX_TAKES_OVER", "slot"),
        ];
        let own = key.env();
        let is_own = |name: &str| key.env_shared == Some(name) || own == name;
        let required = |path: &str| {
            base.iter()
                .filter(|(name, _)| !is_own(name) || path == "flag")
                .copied()
                .collect::<Vec<_>>()
        };
        let from_file = resolved(&file, &required("file"), &[])
            .unwrap_or_else(|faults| panic!("{file}: {}", Faults(faults)));
        assert!(
            entry(&from_file, key.path).1.starts_with("t.toml:"),
            "{}",
            key.path
        );
        let variable = key.env();
        let mut variables = required("env");
        variables.push((&variable, value));
        let from_environment = resolved("", &variables, &[])
            .unwrap_or_else(|faults| panic!("{variable}: {}", Faults(faults)));
        assert_eq!(
            entry(&from_environment, key.path).1,
            format!("environment {variable}")
        );
        let from_flag = resolved("", &base, &[(key.flag, value)])
            .unwrap_or_else(|faults| panic!("--{}: {}", key.flag, Faults(faults)));
        assert_eq!(
            entry(&from_flag, key.path).1,
            format!("flag --{}", key.flag)
        );
        assert_eq!(entry(&from_file, key.path).0, entry(&from_flag, key.path).0);
    }
}

fn example(key: &Key) -> &'static str {
    match (key.kind, key.default) {
        (Kind::Url, _) => "postgres://bob@elsewhere/shop",
        _ if key.path == "outbox.table" => "public.outboxevent",
        _ if key.path == "outbox.columns" => "aggregateid=order_id",
        _ if key.path == "outbox.additional" => "type:header:eventType",
        _ if key.path == "outbox.taken_offset" => "{\"lsn\":1}",
        // Parking is not available for a Debezium table.
        _ if key.path == "undeliverable.policy" => "dead-letter",
        _ if key.path == "routing.regex" => "(?<routedByValue>.*)",
        (Kind::Text, None) => "name",
        (Kind::List, _) => "b:9092",
        (_, Some(default)) => default,
        (Kind::Integer(..), None) => "3",
        (Kind::Bytes(..), None) => "10GiB",
        (kind, None) => panic!("no example for {kind:?}"),
    }
}

#[test]
fn the_defaults_are_those_of_the_library() {
    let config = minimal("").expect("a valid configuration");
    let options = config.relay_options().expect("a database and brokers");
    let library = crate::relay::RelayOptions::new(options.database.clone(), options.kafka.clone());
    let shown = |options: &crate::relay::RelayOptions| {
        let limits = (
            options.in_flight_events_max,
            options.in_flight_bytes_max,
            options.message_bytes_max,
            options.shutdown_grace,
        );
        let texts = (
            options.name.clone(),
            options.schema.clone(),
            options.topic.clone(),
            options.event_source.clone(),
        );
        (
            limits,
            texts,
            options.source,
            options.delivery,
            options.envelope,
            format!("{:?} {:?}", options.topics, options.retention),
        )
    };
    assert_eq!(shown(&options), shown(&library));
}

#[test]
fn what_is_configured_reaches_the_relay() {
    let file = "name = 'n'\n[outbox]\ntable = 'public.OutboxEvent'\n\
        columns = ['payload=body', 'aggregatetype=kind']\n\
        additional = ['type:header:eventType', 'tenant:envelope']\nexpand_json = true\n\
        rows = 'deleted'\nexisting = 'leave'\npublication = 'dbz'\n\
        takes_over = 'debezium'\ntaken_offset = '{\"lsn\": 5}'\n\
        [kafka]\nmax_message_bytes = 2000000\nbrokers = ['a:1', 'b:2']\n\
        [kafka.properties]\nlinger.ms = 5\n\
        [topics]\ncreate = true\npartitions = 6\nreplication = 3\n\
        [routing]\ntopic = 'x.{type}'\nenvelope = 'debezium'\nevent_source = '/me'\n\
        [limits]\nin_flight_events = 7\nin_flight_bytes = '4MiB'\n\
        [admin]\nlisten = 'off'\n[database]\nurl = 'postgres://a@b/c'\n";
    let config = resolved(file, &[], &[]).unwrap_or_else(|faults| panic!("{}", Faults(faults)));
    let options = config.relay_options().expect("a database and brokers");
    assert_eq!(
        (
            options.kafka.brokers.as_str(),
            options.kafka.properties["linger.ms"].as_str()
        ),
        ("a:1,b:2", "5")
    );
    assert_eq!(
        (
            options.topics.create,
            options.topics.partitions,
            options.topics.replication
        ),
        (true, Some(6), Some(3))
    );
    assert_eq!(
        (
            options.topic.as_str(),
            options.event_source.as_str(),
            options.name.as_str()
        ),
        ("x.{type}", "/me", "n")
    );
    assert_eq!(options.envelope, crate::relay::EnvelopeFormat::Debezium);
    assert_eq!(
        (
            options.in_flight_events_max,
            options.in_flight_bytes_max,
            options.message_bytes_max
        ),
        (7, 4 << 20, 2_000_000)
    );
    assert_eq!(config.listen, None);
    let outbox = options.debezium.expect("a Debezium table");
    assert_eq!(
        (
            outbox.schema.as_str(),
            outbox.table.as_str(),
            outbox.column(OutboxField::Payload)
        ),
        ("public", "OutboxEvent", Some("body"))
    );
    assert_eq!(outbox.column(OutboxField::Id), Some("id"));
    assert_eq!(
        outbox
            .additional
            .iter()
            .map(|one| (one.placement, one.alias.as_str()))
            .collect::<Vec<_>>(),
        [
            (Placement::Header, "eventType"),
            (Placement::Envelope, "tenant")
        ]
    );
    assert_eq!(
        (outbox.expand_json, outbox.rows, outbox.existing),
        (true, OutboxRows::Deleted, ExistingRows::Leave)
    );
    assert_eq!(
        (
            outbox.publication.as_deref(),
            outbox
                .hand_over
                .map(|from| (from.slot, from.offset.is_some()))
        ),
        (Some("dbz"), Some(("debezium".into(), true)))
    );
}

#[test]
fn each_fault_of_a_debezium_outbox_names_the_key_the_value_and_the_remedy() {
    let table = "[outbox]\ntable = 'public.outbox'\n";
    for (file, key, problem, remedy) in [
        (
            "[outbox]\ntable = 'outbox'\n".to_owned(),
            "outbox.table",
            "not a table name",
            "schema.name",
        ),
        (
            "[outbox]\nrows = 'deleted'\n".into(),
            "outbox.rows",
            "outbox.table is not set",
            "outbox.table",
        ),
        (
            format!("{table}[undeliverable]\npolicy = 'park'\n"),
            "undeliverable.policy",
            "rows are not kept",
            "stop or dead-letter",
        ),
        (
            format!("{table}columns = 'key=a'\n"),
            "outbox.columns",
            "\"key=a\"",
            "aggregateid=order_id",
        ),
        (
            format!("{table}additional = 'a:partition'\n"),
            "outbox.additional",
            "\"a:partition\"",
            "column:header",
        ),
        (
            format!("{table}taken_offset = '{{}}'\ntakes_over = 's'\n"),
            "outbox.taken_offset",
            "no stored offset",
            "copy the whole response",
        ),
        (
            format!("{table}taken_offset = '{{\"lsn\":1}}'\n"),
            "outbox.taken_offset",
            "slot is not set",
            "outbox.takes_over",
        ),
        (
            "[routing]\nregex = '('\n".into(),
            "routing.regex",
            "not a regular expression",
            "docs.rs/regex",
        ),
        (
            "[routing]\nreplacement = '$2'\n".into(),
            "routing.replacement",
            "no group `2`",
            "$1",
        ),
    ] {
        let faults = minimal(&file).expect_err(&file);
        let fault = faults
            .iter()
            .find(|fault| fault.key == key)
            .unwrap_or_else(|| panic!("{file}: {faults:?}"));
        assert!(
            fault.problem.contains(problem)
                && fault.remedy.contains(remedy)
                && fault.value.is_some(),
            "{fault}"
        );
    }
}

/// Key, place, and a word of the problem or the remedy.
type Expected<'a> = (&'a str, &'a str, &'a str);

#[test]
fn every_fault_names_key_place_and_remedy() {
    let cases: &[(&str, Expected<'_>)] = &[
        ("nam = 'x'", ("nam", "t.toml:1", "did you mean name?")),
        (
            "\n\n[kafka]\nbroker = 'x'",
            ("kafka.broker", "t.toml:4", "did you mean kafka.brokers?"),
        ),
        (
            "brokers = 'x'",
            ("brokers", "t.toml:1", "did you mean kafka.brokers?"),
        ),
        (
            "[topic]\ncreate = true",
            ("topic", "t.toml:1", "did you mean routing.topic?"),
        ),
        (
            "[kafka]\n'linger.ms' = 5",
            ("kafka.linger.ms", "t.toml:2", "[kafka.properties]"),
        ),
        ("name = 5", ("name", "t.toml:1", "an unquoted number")),
        ("name = 'Orders'", ("name", "t.toml:1", "lower case")),
        (
            "schema = 'pg_x'",
            ("schema", "t.toml:1", "Postgres reserves"),
        ),
        (
            "shutdown_grace = 10",
            ("shutdown_grace", "t.toml:1", "\"10s\""),
        ),
        (
            "shutdown_grace = '0s'",
            ("shutdown_grace", "t.toml:1", "from 1s to 1h"),
        ),
        (
            "delivery = 'exactly-twice'",
            ("delivery", "t.toml:1", "at-least-once"),
        ),
        (
            "[routing]\nenvelope = 'cloudevent'",
            (
                "routing.envelope",
                "t.toml:2",
                "did you mean \"cloudevents\"?",
            ),
        ),
        (
            "[routing]\ntopic = '{aggregate_type}'",
            ("routing.topic", "t.toml:2", "{aggregate_type}"),
        ),
        (
            "[limits]\nin_flight_bytes = '8mb'",
            ("limits.in_flight_bytes", "t.toml:2", "\"8MiB\""),
        ),
        (
            "[limits]\nin_flight_bytes = '64KiB'",
            (
                "limits.in_flight_bytes",
                "t.toml:2",
                "kafka.max_message_bytes",
            ),
        ),
        (
            "[topics]\npartitions = 0",
            ("topics.partitions", "t.toml:2", "from 1"),
        ),
        (
            "[topics]\ncreate = 'yes'",
            ("topics.create", "t.toml:2", "true or false"),
        ),
        (
            "[admin]\nlisten = '9464'",
            ("admin.listen", "t.toml:2", "ADDRESS:PORT"),
        ),
        (
            "[log]\nlevel = 'verbose'",
            ("log.level", "t.toml:2", "debug"),
        ),
        (
            "[kafka.properties]\nacks = 1",
            ("kafka.properties.acks", "t.toml:2", "remove it"),
        ),
        (
            "[kafka.properties]\nlinger_ms = 1",
            (
                "kafka.properties.linger_ms",
                "t.toml:2",
                "did you mean linger.ms?",
            ),
        ),
        (
            "[kafka.properties]\na = []",
            (
                "kafka.properties.a",
                "t.toml:2",
                "a string, a number or a boolean",
            ),
        ),
        (
            "[kafka.properties]\n'security.protocol' = 'ssl'\n'ssl.ca.location' = '/no/such'",
            ("kafka.properties", "", "ssl.ca.location"),
        ),
        ("[kafka]\nbrokers", ("", "t.toml:2", "not valid TOML")),
    ];
    for (file, (key, place, word)) in cases {
        let faults = minimal(file).expect_err(file);
        let fault = faults
            .iter()
            .find(|fault| fault.key == *key)
            .unwrap_or_else(|| panic!("{file}: {}", Faults(faults.clone())));
        assert_eq!(
            fault
                .place
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            *place,
            "{file}"
        );
        assert!(format!("{fault}").contains(word), "{file}: {fault}");
        assert!(!fault.remedy.is_empty(), "{file}");
    }
}

#[test]
fn all_faults_of_all_layers_are_told_at_once() {
    let faults = resolved(
        "nam = 1\nschema = 2\n[kafka.properties]\nacks = 1\n",
        &[
            ("TIDINGS_LOG_LEVEL", "loud"),
            ("TIDINGS_KAFKA_BROKER", "x"),
            ("TIDINGS_KAFKA_PROPERTIES_LINGER_MS", "soon"),
            ("DATABASE_URL", "nonsense"),
        ],
        &[("shutdown-grace", "soon")],
    )
    .expect_err("invalid values");
    let mut keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
    keys.sort_unstable();
    let expected = [
        "TIDINGS_KAFKA_BROKER",
        "database.url",
        "kafka.brokers",
        "kafka.properties.acks",
        "kafka.properties.linger.ms",
        "log.level",
        "nam",
        "schema",
        "shutdown_grace",
    ];
    assert_eq!(keys, expected);
    let text = Faults(faults).to_string();
    assert!(
        text.contains("9 errors") && text.contains("did you mean TIDINGS_KAFKA_BROKERS?"),
        "{text}"
    );
}

#[test]
fn only_what_the_command_needs_must_be_there() {
    let missing = |needs| {
        resolve(Vec::new(), needs)
            .map(|_| ())
            .map_err(|faults| faults.len())
    };
    assert_eq!(
        missing(Needs {
            database: Need::Unused,
            brokers: Need::Unused
        }),
        Ok(())
    );
    assert_eq!(
        missing(Needs {
            database: Need::Required,
            brokers: Need::Unused
        }),
        Err(1)
    );
    assert_eq!(
        missing(Needs {
            database: Need::Unused,
            brokers: Need::Optional
        }),
        Ok(())
    );
    assert_eq!(missing(RELAY), Err(2));
}

#[test]
fn a_secret_file_that_cannot_be_read_is_reported_once() {
    for name in ["DATABASE_URL_FILE", "TIDINGS_DATABASE_URL_FILE"] {
        let variables = environment(&[(name, "/does/not/exist"), ("KAFKA_BROKERS", "b:9092")]);
        let Faults(faults) = load(None, &variables, Layer::default(), RELAY).expect_err(name);
        let [fault] = faults.as_slice() else {
            panic!("one error: {faults:?}");
        };
        assert!(
            fault.key == "database.url" && fault.problem.contains("cannot be read"),
            "{fault}"
        );
    }
}

#[test]
fn variables_that_an_orchestrator_adds_are_left_alone() {
    let variables = [
        ("DATABASE_URL", URL),
        ("KAFKA_BROKERS", "b:9092"),
        ("TIDINGS_SERVICE_HOST", "10.0.0.1"),
        ("TIDINGS_SERVICE_PORT_HTTP", "80"),
        ("TIDINGS_PORT", "tcp://10.0.0.1:80"),
        ("TIDINGS_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("TIDINGS_RELAY_SERVICE_HOST", "10.0.0.1"),
    ];
    assert!(resolved("", &variables, &[]).is_ok());
}

#[test]
fn a_secret_is_never_shown_whether_the_configuration_is_sound_or_not() {
    let sound = "[kafka.properties]\n'sasl.password' = 'hunter2'\n'sasl.username' = 'ann'\n";
    let config = minimal(sound).unwrap_or_else(|faults| panic!("{}", Faults(faults)));
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    for (file, variables) in [
        (
            "[kafka.properties]\n'sasl.passwrd.password' = 'hunter2'",
            [("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:1")],
        ),
        (
            "[kafka.properties]\n'sasl.pasword' = 'hunter2'",
            [("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:1")],
        ),
        (
            "[kafka.properties]\nsasl.pass = 'hunter2'",
            [("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:1")],
        ),
        (
            "[kafka.properties]\nsasl.password = hunter2",
            [("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:1")],
        ),
        (
            "[kafka.properties]\nsasl.password = \"\\hunter2\"",
            [("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:1")],
        ),
        (
            "[kafka.properties]\nsasl.password = ['hunter2']",
            [("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:1")],
        ),
        (
            "sasl.pasword = 'hunter2'",
            [("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:1")],
        ),
        ("hunter2", [("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:1")]),
        (
            "",
            [
                ("TIDINGS_KAFKA_PROPERTIES_SASL_PASWORD", "hunter2"),
                ("DATABASE_URL", URL),
            ],
        ),
        (
            "",
            [
                ("DATABASE_URL", "postgres://ann:a%20/hunter2@db/shop"),
                ("KAFKA_BROKERS", "b:1"),
            ],
        ),
        (
            "",
            [
                ("DATABASE_URL", "postgres://ann:1?hunter2@db/shop"),
                ("KAFKA_BROKERS", "b:1"),
            ],
        ),
        (
            "",
            [
                ("DATABASE_URL", "postgres://ann:1#hunter2@db/shop"),
                ("KAFKA_BROKERS", "b:1"),
            ],
        ),
        (
            "",
            [
                ("DATABASE_URL", "postgres://db/shop?password=a&hunter2"),
                ("KAFKA_BROKERS", "b:1"),
            ],
        ),
        (
            "",
            [
                ("DATABASE_URL", "host=db password=hunter2"),
                ("KAFKA_BROKERS", "b:1"),
            ],
        ),
        (
            "",
            [
                ("DATABASE_URL", URL),
                ("TIDINGS_SCHEMA", "host=db password=hunter2"),
            ],
        ),
        (
            "[kafka]\nsasl_password = 'hunter2'",
            [("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:1")],
        ),
        (
            "[kafka.properties]\nsasl.password = 'hunter2",
            [("DATABASE_URL", URL), ("KAFKA_BROKERS", "b:1")],
        ),
        (
            "",
            [
                ("DATABASE_URL", "postgres://ann:hunter2@db/shop?x=1"),
                ("KAFKA_BROKERS", "b:1"),
            ],
        ),
        (
            "",
            [
                ("DATABASE_URL", "postgres://ann:hunter2@db:x/shop"),
                ("KAFKA_BROKERS", "b:1"),
            ],
        ),
        (
            "",
            [
                ("DATABASE_URL", URL),
                ("KAFKA_BROKERS", "postgres://ann:hunter2@db/shop"),
            ],
        ),
        (
            "",
            [
                ("DATABASE_URL", URL),
                ("TIDINGS_NAME", "postgres://ann:hunter2@db/shop"),
            ],
        ),
        ("", [("DATABASE_URL", URL), ("TIDINGS_HUNTER", "hunter2")]),
    ] {
        let faults = Faults(resolved(file, &variables, &[]).expect_err(file));
        assert!(
            !format!("{faults} {faults:?}").contains("hunter2"),
            "{faults}"
        );
    }
    for property in ["sasl.password hunter2", "sasl.pasword hunter2", "hunter2"] {
        let flags = Layer::of_flags(&[], &[property.to_owned()]);
        assert!(
            !format!("{:?}", flags.faults).contains("hunter2"),
            "{property}"
        );
    }
}
