//! Choice between the position in Kafka and the position in Postgres. Pure.

use crate::relay::{
    DeliveryGuarantee, RelayOptions,
    error::Interruption,
    leadership::relay_store::Saved,
    position::{Foreign, Identity, Position, Recorded},
    startup::names::KafkaNames,
};

/// Returns the newer position of the topic's and the row's, unless the topic has lost positions.
/// Records that another program wrote to the topic (`foreign`) never count.
pub(super) fn choose(
    options: &RelayOptions,
    names: &KafkaNames,
    cluster: &str,
    saved: Saved,
    recorded: Option<Recorded>,
    foreign: &Foreign,
) -> Result<(Position, Option<Identity>), Interruption> {
    let name = &options.name;
    let refused = |what: String| {
        Err(Interruption::Refused(format!(
            "{what}. Nothing was published since. `tidings relay rewind --to-mirror --name {name}` \
             continues from the position in the database (events that Kafka lost stay lost, and \
             some may repeat), `tidings relay rewind --since TIME --name {name}` publishes younger \
             events again (each has --dry-run)"
        )))
    };
    let Some(mirror) = saved.position else {
        return first_position(options, names, recorded, foreign);
    };
    // Only a position that came from the topic is evidence about the topic.
    let from_topic = saved.number > 0 && options.delivery == DeliveryGuarantee::ExactlyOnce;
    if from_topic
        && saved
            .cluster
            .as_deref()
            .is_some_and(|before| before != cluster)
    {
        return refused(format!(
            "relay `{name}` published to Kafka cluster {} before, and this one is {cluster}",
            saved.cluster.as_deref().unwrap_or("?")
        ));
    }
    match recorded {
        // The database's own copy needs no signature. An unsigned record was written by an earlier
        // version, in between or before any signature.
        Some(Recorded {
            signed: false,
            number,
            ..
        }) if from_topic && number == saved.number => Ok((mirror, saved.identity)),
        _ if from_topic
            && foreign.known
            && recorded
                .as_ref()
                .is_none_or(|recorded| recorded.number < saved.number) =>
        {
            Ok((mirror, saved.identity))
        }
        None if from_topic => refused(format!(
            "Kafka has lost the positions of relay `{name}`: topic `{}` is missing or empty, and \
             the database refers to its record {}",
            names.topic, saved.number
        )),
        // Numbers continue from one epoch to the next. The row's epoch is no evidence: a leader
        // stores its own epoch before its first record.
        Some(recorded) if from_topic && recorded.number < saved.number => refused(format!(
            "Kafka has lost data: topic `{}` ends with record {} of relay `{name}`, and the \
             database refers to record {}",
            names.topic, recorded.number, saved.number
        )),
        Some(recorded)
            if from_topic || (recorded.epoch, recorded.number) >= (saved.epoch, saved.number) =>
        {
            Ok((recorded.position, Some(recorded.identity)))
        }
        Some(_) | None => Ok((mirror, saved.identity)),
    }
}

/// Returns the topic's position for a relay whose row has none, or the start of the log.
fn first_position(
    options: &RelayOptions,
    names: &KafkaNames,
    recorded: Option<Recorded>,
    foreign: &Foreign,
) -> Result<(Position, Option<Identity>), Interruption> {
    let name = &options.name;
    if recorded.is_none() && foreign.records > 0 {
        return Err(Interruption::Refused(format!(
            "topic `{}` holds {} records that relay `{name}` has not signed, and the database \
                 has no position of the relay: another program wrote them, or an earlier version \
                 of a relay that was forgotten since. Nothing was published since. `tidings relay \
                 rewind --all --name {name}` publishes everything that the outbox contains (events \
                 that were published before are repeated), `tidings relay skip --all --name \
                 {name}` continues with new events (each has --dry-run)",
            names.topic, foreign.records
        )));
    }
    Ok(recorded.map_or((Position::start(), None), |recorded| {
        (recorded.position, Some(recorded.identity))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::startup::names::KnownNames;

    fn options() -> RelayOptions {
        let database =
            crate::postgres::DatabaseSettings::parse("postgres://a@localhost/b").expect("a URL");
        RelayOptions::new(database, crate::kafka::Settings::default())
    }

    fn at(log: u64) -> Position {
        Position {
            resume_lsn: crate::postgres::Lsn(log),
            ..Position::start()
        }
    }

    fn identity() -> Identity {
        Identity {
            system: "1".into(),
            database: 2,
            timeline: 1,
        }
    }

    /// Row and topic as (epoch, number), or `None` if missing. Returns the source of the chosen
    /// position (`row`, `topic` or `start`) or the refusal.
    fn chosen(
        row: Option<(i64, u64)>,
        topic: Option<(i64, u64)>,
        cluster: &str,
    ) -> Result<&'static str, String> {
        chosen_of(
            row,
            topic.map(|(epoch, number)| (epoch, number, true)),
            &Foreign::default(),
            cluster,
        )
    }

    /// The same for a record that is signed or unsigned, with foreign records in the topic.
    fn chosen_of(
        row: Option<(i64, u64)>,
        topic: Option<(i64, u64, bool)>,
        foreign: &Foreign,
        cluster: &str,
    ) -> Result<&'static str, String> {
        let saved = row.map_or_else(Saved::default, |(epoch, number)| Saved {
            identity: Some(identity()),
            position: Some(at(1)),
            epoch,
            number,
            cluster: Some("ours".into()),
            names: KnownNames::default(),
            adopts: None,
            moved_to: None,
            given_up: Vec::new(),
            event_source: String::new(),
        });
        let recorded = topic.map(|(epoch, number, signed)| Recorded {
            position: at(2),
            identity: identity(),
            epoch,
            number,
            signed,
        });
        let names = KafkaNames {
            transactional_ids: ["t".into(), "t-2".into(), "t-3".into()],
            topic: "p".into(),
        };
        match choose(&options(), &names, cluster, saved, recorded, foreign) {
            Ok((position, _)) if position == at(1) => Ok("row"),
            Ok((position, _)) if position == at(2) => Ok("topic"),
            Ok(_) => Ok("start"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_newer_position_is_gone_on_from_and_a_topic_that_lost_some_is_refused() {
        assert_eq!(chosen(None, None, "ours"), Ok("start"));
        assert_eq!(chosen(None, Some((1, 5)), "ours"), Ok("topic"));
        assert_eq!(chosen(Some((3, 7)), Some((3, 7)), "ours"), Ok("topic"));
        assert_eq!(chosen(Some((3, 7)), Some((3, 9)), "ours"), Ok("topic"));
        // A leader stored its row and was killed before its first batch.
        assert_eq!(chosen(Some((4, 7)), Some((3, 7)), "ours"), Ok("topic"));
        // The row was stored by delivery at least once, before or after the topic's record.
        assert_eq!(chosen(Some((3, 0)), None, "ours"), Ok("row"));
        assert_eq!(chosen(Some((3, 0)), Some((2, 9)), "ours"), Ok("row"));
        assert_eq!(chosen(Some((3, 0)), Some((4, 10)), "ours"), Ok("topic"));
        // A leader stored its epoch and was killed before its first record.
        assert_eq!(chosen(Some((4, 7)), Some((3, 7)), "ours"), Ok("topic"));
        // Kafka has lost positions.
        assert!(
            chosen(Some((3, 7)), None, "ours").is_err_and(|text| text.contains("missing or empty"))
        );
        assert!(
            chosen(Some((3, 7)), Some((3, 6)), "ours")
                .is_err_and(|text| text.contains("ends with record 6"))
        );
        assert!(
            chosen(Some((3, 7)), Some((3, 7)), "theirs")
                .is_err_and(|text| text.contains("this one is theirs"))
        );
    }

    #[test]
    fn what_another_program_wrote_is_not_gone_on_from() {
        let foreign = |known| Foreign {
            records: 2,
            last: 9,
            known,
        };
        // The relay has not started yet, and another program wrote to its topic.
        assert!(
            chosen_of(None, None, &foreign(false), "ours")
                .is_err_and(|text| text.contains("has not signed") && text.contains("rewind --all"))
        );
        assert_eq!(
            chosen_of(Some((3, 7)), Some((3, 7, true)), &foreign(true), "ours"),
            Ok("topic")
        );
        assert_eq!(
            chosen_of(Some((3, 7)), Some((3, 9, true)), &foreign(false), "ours"),
            Ok("topic")
        );
        // Kafka has lost the signed records, and other programs wrote other records.
        assert!(
            chosen_of(Some((3, 7)), None, &foreign(false), "ours")
                .is_err_and(|text| text.contains("missing or empty"))
        );
        // An earlier version ran since, and wrote the record that the database refers to.
        assert_eq!(
            chosen_of(Some((3, 7)), Some((2, 5, true)), &foreign(true), "ours"),
            Ok("row")
        );
        // An earlier version wrote all records.
        assert_eq!(
            chosen_of(
                Some((3, 7)),
                Some((3, 7, false)),
                &Foreign::default(),
                "ours"
            ),
            Ok("row")
        );
        assert_eq!(
            chosen_of(
                Some((3, 7)),
                Some((3, 9, false)),
                &Foreign::default(),
                "ours"
            ),
            Ok("topic")
        );
    }
}
