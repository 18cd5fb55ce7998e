//! Records that no publisher should write. The mark of each record identifies its outcome.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::{Connection as _, PgConnection};

use super::super::Failure;
use super::super::random::Random;
use super::events::{ACCOUNT_TOPIC, LEDGER, SHOP, SHOP_TOPICS};
use super::tables::{ACCOUNTS, MARK};

/// The time limit for a response. A broker that has just restarted may be slow.
const SEND_LIMIT: Duration = Duration::from_secs(60);

/// The largest batch that the topics accept: Kafka's default of `max.message.bytes`.
const MESSAGE_BYTES_MAX: usize = 1_048_588;

/// Space for the fields of a record besides value, key and headers.
const RECORD_OVERHEAD: usize = 100;

/// The number of header names in one record.
const HEADER_NAMES: usize = 20_000;

/// The outcome that the contract guarantees for a hostile record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// A dead letter.
    Letter,
    /// Skipped and counted.
    Skipped,
    /// Handled, which applies to a tombstone that has a handler.
    Handled,
}

macro_rules! hostilities {
    ($($hostility:ident, $word:literal, $doc:literal;)*) => {
        /// A kind of hostile record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Hostility { $(#[doc = $doc] $hostility),* }

        impl Hostility {
            const ALL: &[Self] = &[$(Self::$hostility),*];
        }

        impl fmt::Display for Hostility {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$hostility => $word),* })
            }
        }
    };
}

hostilities! {
    MalformedJson, "malformed JSON", "A CloudEvent with truncated data.";
    Confluent, "Confluent's wire format", "Magic byte, schema id and Avro data.";
    CloudEventsBatch, "batch of CloudEvents", "A batch of CloudEvents in one record.";
    ManyHeaders, "20,000 header names", "Many header names that no other record has.";
    Oversized, "oversized", "A record that is too large for the additional headers of a letter.";
    HeaderBytes, "header bytes", "Attributes that are not valid UTF-8.";
    NewerVersion, "newer version", "A data version that is newer than the code.";
    Keyless, "keyless", "A record that is not an event, and whose key is missing, \
                         empty or not valid text.";
    Tombstone, "tombstone", "A null value.";
    Forged, "forged duplicate", "The id of a handled event, with other data.";
    UnknownType, "unknown type", "A type without a handler.";
}

impl Hostility {
    /// Returns the guaranteed outcome in this topic.
    pub(crate) fn end(self, topic: &str) -> End {
        match self {
            Self::Tombstone if topic == ACCOUNT_TOPIC => End::Handled,
            Self::Tombstone | Self::UnknownType => End::Skipped,
            _ => End::Letter,
        }
    }
}

/// A hostile record that the broker acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) mark: String,
    pub(crate) hostility: Hostility,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mark,
            hostility,
            topic,
            partition,
            offset,
        } = self;
        write!(f, "{topic}/{partition}/{offset}: {hostility} ({mark})")
    }
}

/// Sends hostile records.
pub(crate) struct Sender {
    random: Random,
    sent: Vec<Sent>,
}

struct Record {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

impl Sender {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed, u64::MAX),
            sent: Vec::new(),
        }
    }

    /// Returns all records that were acknowledged.
    pub(crate) fn sent(&self) -> &[Sent] {
        &self.sent
    }

    /// Sends each kind once, to topics that the seed determines. Sends the large kinds in one round
    /// of three on average.
    ///
    /// # Errors
    ///
    /// Returns an error if the broker does not accept a record. If the database is unavailable,
    /// only the forged record is left out.
    pub(crate) async fn round(&mut self, brokers: &str, url: &str) -> Result<(), Failure> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("message.max.bytes", "3000000")
            .set("linger.ms", "0");
        let producer: FutureProducer = config.create()?;
        for hostility in Hostility::ALL {
            let large = matches!(hostility, Hostility::Oversized | Hostility::ManyHeaders);
            if large && !self.random.one_in(3) {
                continue;
            }
            let topic = if self.random.one_in(2) {
                ACCOUNT_TOPIC
            } else {
                *self.random.pick(&SHOP_TOPICS)
            };
            let mark = self.random.mark().to_string();
            let Some(mut record) = self.draw(*hostility, topic, url).await else {
                continue;
            };
            record
                .headers
                .push((MARK.to_owned(), mark.clone().into_bytes()));
            let headers = record.headers.iter().fold(
                OwnedHeaders::new_with_capacity(record.headers.len()),
                |all, (key, value)| {
                    all.insert(Header {
                        key,
                        value: Some(value),
                    })
                },
            );
            let sending = FutureRecord {
                key: record.key.as_ref(),
                payload: record.value.as_ref(),
                ..FutureRecord::to(topic)
            };
            let sent = producer.send(sending.headers(headers), SEND_LIMIT).await;
            let sent = sent.map_err(|(error, _)| {
                format!("{topic} does not take a hostile record ({hostility}): {error}")
            })?;
            self.sent.push(Sent {
                mark,
                hostility: *hostility,
                topic: topic.to_owned(),
                partition: sent.partition,
                offset: sent.offset,
            });
        }
        Ok(())
    }

    async fn draw(&mut self, hostility: Hostility, topic: &str, url: &str) -> Option<Record> {
        let key = self.key(topic);
        let text = |text: &str| Some(text.as_bytes().to_vec());
        let event = self.event(topic);
        let record = |value, headers| Record {
            key: Some(key.clone()),
            value,
            headers,
        };
        Some(match hostility {
            Hostility::MalformedJson => record(text(r#"{"account": "a-0", "ver"#), event),
            Hostility::Confluent => {
                let headers = if self.random.one_in(2) {
                    event
                } else {
                    Vec::new()
                };
                record(Some([&[0, 0, 0, 0, 7][..], &[2; 20]].concat()), headers)
            }
            Hostility::CloudEventsBatch => {
                let batch = r#"[{"specversion":"1.0","id":"1","source":"/x","type":"Deposited","data":{}}]"#;
                record(
                    text(batch),
                    vec![(
                        "content-type".to_owned(),
                        b"application/cloudevents-batch+json".to_vec(),
                    )],
                )
            }
            Hostility::ManyHeaders => {
                let random = &mut self.random;
                let headers = (0..HEADER_NAMES)
                    .map(|_| (format!("x-{:x}", random.next()), b"1".to_vec()))
                    .collect();
                record(text("not an event"), headers)
            }
            Hostility::Oversized => {
                let used = key.len()
                    + event
                        .iter()
                        .map(|(name, value)| name.len() + value.len() + 2)
                        .sum::<usize>();
                let value = (0..MESSAGE_BYTES_MAX - used - RECORD_OVERHEAD - 60)
                    .map(|_| self.random.next() as u8)
                    .collect();
                record(Some(value), event)
            }
            Hostility::HeaderBytes => {
                let name = *self.random.pick(&[
                    "ce_type",
                    "ce_source",
                    "ce_id",
                    "ce_subject",
                    "ce_dataversion",
                    "ce_specversion",
                ]);
                let mut headers = event;
                headers.retain(|(known, _)| known != name);
                headers.push((
                    name.to_owned(),
                    self.random
                        .pick(&[&b"\xff\xfe"[..], b"\x00\xff", b"\xed\xa0\x80"])
                        .to_vec(),
                ));
                record(text("{}"), headers)
            }
            Hostility::NewerVersion => {
                let mut headers = event;
                headers.push(("ce_dataversion".to_owned(), b"99".to_vec()));
                record(text("{}"), headers)
            }
            Hostility::Keyless => {
                let key = self
                    .random
                    .pick(&[None, Some(&b""[..]), Some(b"\xff\x00")])
                    .map(<[u8]>::to_vec);
                Record {
                    key,
                    value: text("{}"),
                    headers: Vec::new(),
                }
            }
            Hostility::Tombstone => record(None, Vec::new()),
            Hostility::Forged => return self.forge(topic, url).await,
            Hostility::UnknownType => {
                let mut headers = event;
                headers.retain(|(name, _)| name != "ce_type");
                headers.push((
                    "ce_type".to_owned(),
                    format!("Unknown{}", self.random.below(1_000)).into_bytes(),
                ));
                record(text("{}"), headers)
            }
        })
    }

    /// Returns the key of an existing aggregate or of an unknown one.
    fn key(&mut self, topic: &str) -> Vec<u8> {
        let key = match self.random.below(3) {
            0 => format!("hostile-{}", self.random.below(5)),
            _ if topic == ACCOUNT_TOPIC => format!("a-{}", self.random.below(ACCOUNTS)),
            _ => (1 + self.random.below(200)).to_string(),
        };
        key.into_bytes()
    }

    /// Returns the attributes of an event that has a handler in this topic.
    fn event(&mut self, topic: &str) -> Vec<(String, Vec<u8>)> {
        let kind = match topic {
            ACCOUNT_TOPIC => "Deposited",
            "chaos-order" => "OrderPlaced",
            "chaos-stock" => "ReserveStock",
            "chaos-payment" => "TakePayment",
            _ => "SendParcel",
        };
        let id = self.random.mark().to_string();
        let attributes = [
            ("ce_specversion", "1.0"),
            ("ce_type", kind),
            ("ce_source", "/hostile"),
            ("ce_id", &id),
        ];
        attributes
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
            .to_vec()
    }

    /// Returns a handled event with another payload. Returns `None` if no event was handled yet or
    /// the database is unavailable.
    async fn forge(&mut self, topic: &str, url: &str) -> Option<Record> {
        let consumer = if topic == ACCOUNT_TOPIC { LEDGER } else { SHOP };
        let handled = "select i.source, i.event_id, o.type, o.aggregatetype, o.aggregateid, \
                       o.payload::text
                       from (select source, event_id from tidings.inbox
                             where consumer = $1 and topic = $2 and event_id ~ \
                                 '^[0-9a-f]{8}-[0-9a-f-]{27}$'
                             order by handled_at desc limit 50) i
                       join tidings.outbox o on o.id = i.event_id::uuid";
        let reading = async {
            let mut session = PgConnection::connect(url).await?;
            sqlx::query_as::<_, (String, String, String, String, String, String)>(handled)
                .bind(consumer)
                .bind(topic)
                .fetch_all(&mut session)
                .await
        };
        let all = tokio::time::timeout(SEND_LIMIT, reading).await.ok()?.ok()?;
        if all.is_empty() {
            return None;
        }
        let (source, id, kind, aggregate, key, payload) = self.random.pick(&all).clone();
        let headers = BTreeMap::from([
            ("ce_specversion", "1.0"),
            ("ce_type", &kind),
            ("ce_source", &source),
            ("ce_id", &id),
            ("ce_aggregatetype", &aggregate),
        ]);
        let headers = headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
            .collect();
        let payload = payload
            .trim_end()
            .strip_suffix('}')
            .map(|fields| format!(r#"{fields},"forged":true}}"#))?;
        Some(Record {
            key: Some(key.into_bytes()),
            value: Some(payload.into_bytes()),
            headers,
        })
    }
}
