//! `tidings` without a command: the state on one screen, and the next step.

use std::process::ExitCode;

use super::text::{bounded, note};
use crate::cli::{
    config::{BROKERS, Config, DATABASE_URL, Faults},
    database,
    escape::escaped,
    exit::{DONE, Failure},
    output,
    table::{Align, list},
    time_limit,
};
use crate::inspect::{
    InspectError,
    advice::{advice, overdue},
    relays::{RelayStatus, Status},
    subscribers::{SubscriberStatus, subscribers},
    units::{grouped, time},
};

/// Number of relays that are shown, so that the text fits one screen.
const RELAYS_MAX: usize = 8;

/// State of the tables.
enum State {
    NoTables,
    Tables(Status, Vec<SubscriberStatus>),
}

/// Returns `true` if the only error of the configuration is that no database is set.
pub(crate) fn is_unconfigured(faults: &Faults) -> bool {
    matches!(faults.0.as_slice(), [one] if one.key == DATABASE_URL.path && one.place.is_none())
}

/// Prints the first step of an operator who has configured nothing.
pub(crate) fn unconfigured() -> ExitCode {
    let shared = |key: &'static crate::cli::config::Key| key.env_shared.unwrap_or_default();
    let without_servers = match cfg!(feature = "try") {
        true => "  -> without servers, run `tidings try`, which starts them\n",
        false => "",
    };
    output::lines(&format!(
        "no database is configured\n  \
         -> export {}=postgres://user:password@host:5432/database {}=host:9092\n  \
         -> run `tidings` again; `tidings -h` lists the commands\n{without_servers}",
        shared(&DATABASE_URL),
        shared(&BROKERS)
    ));
    ExitCode::from(DONE)
}

/// Prints the state of the database and the next step.
pub(crate) async fn run(config: &Config) -> Result<ExitCode, Failure> {
    let settings = database::settings(config)?;
    let state = time_limit::within(settings, read(config)).await?;
    let server = settings.redacted();
    output::lines(&format!(
        "database {}, schema {}\n\n{}",
        escaped(&server),
        config.schema,
        text(&state, config.kafka.is_some())
    ));
    Ok(ExitCode::from(DONE))
}

async fn read(config: &Config) -> Result<State, Failure> {
    let database = database::open(config, "overview").await?;
    let status = match Status::read(&database).await {
        Err(InspectError::Missing { .. }) => return Ok(State::NoTables),
        status => status
            .map_err(|error| database::unreadable(config, error, "the state of the relays"))?,
    };
    let subscribers = subscribers(&database)
        .await
        .map_err(|error| database::unreadable(config, error, "the subscribers"))?;
    Ok(State::Tables(status, subscribers))
}

fn text(state: &State, has_brokers: bool) -> String {
    let (status, subscribers) = match state {
        State::NoTables => {
            return "the tables do not exist, or belong to an older version\n  \
                    -> run `tidings migrate`\n"
                .into();
        }
        State::Tables(status, subscribers) => (status, subscribers),
    };
    if status.relays.is_empty() {
        let waiting = bounded(status.waiting_events.unwrap_or_default());
        let brokers = if has_brokers {
            ""
        } else {
            "set --brokers or KAFKA_BROKERS, then "
        };
        return format!(
            "no relay has run; events in the outbox: {waiting}\n  \
             -> {brokers}run `tidings check`, then `tidings relay`\n"
        );
    }
    let mut text = relays(&status.relays);
    if !subscribers.is_empty() {
        let parked = grouped(subscribers.iter().map(parked_events).sum());
        text.push_str(&format!(
            "\nsubscribers: {}, parked events of subscribers: {parked}\n",
            subscribers.len()
        ));
    }
    format!("{text}\n{}", next_step(status, subscribers))
}

fn relays(relays: &[RelayStatus]) -> String {
    let head = ["relay", "leader", "published", "lag", "oldest"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(relays.iter().take(RELAYS_MAX).map(|relay| {
        vec![
            relay.name.clone(),
            relay.leader.clone().unwrap_or_else(|| "-".into()),
            grouped(relay.published),
            relay.lag.text(),
            relay.lag.seconds.map_or("-".into(), time),
        ]
    }));
    let right = Align::Right;
    let mut text = list(&[Align::Left, Align::Left, right, right, right], &rows);
    let more = relays.len().saturating_sub(RELAYS_MAX);
    if more > 0 {
        text.push_str(&format!("and {more} more\n"));
    }
    text
}

fn parked_events(subscriber: &SubscriberStatus) -> i64 {
    subscriber.parked.iter().map(|topic| topic.events).sum()
}

/// Returns the first problem with its remedy, and the number of further problems.
fn next_step(status: &Status, subscribers: &[SubscriberStatus]) -> String {
    let advice = status.relays.iter().flat_map(advice);
    let advice = advice.chain(overdue(&status.scheduled));
    let mut problems: Vec<String> = advice.map(note).collect();
    let parked = subscribers.iter().filter(|one| parked_events(one) > 0);
    problems.extend(parked.map(|one| {
        format!(
            "subscriber {}: parked events: {}\n  -> `tidings subscribers list` shows its instances\n",
            escaped(&one.name),
            grouped(parked_events(one))
        )
    }));
    match problems.as_slice() {
        [] => "no problem was found\n  \
               -> `tidings status` shows the details, `tidings where` the newest events\n"
            .into(),
        [only] => only.clone(),
        [first, more @ ..] => format!(
            "{first}further problems: {}\n  -> `tidings status` and `tidings subscribers list` \
             show them\n",
            more.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::text::{NONE_SCHEDULED, relay};
    use crate::inspect::{
        relays::{ParkedStatus, ScheduledStatus},
        subscribers::ParkedTopic,
    };

    fn shown(relays: Vec<RelayStatus>, subscribers: Vec<SubscriberStatus>) -> String {
        let status = Status {
            schema: "tidings".into(),
            relays,
            waiting_events: Some(5),
            scheduled: NONE_SCHEDULED,
        };
        text(&State::Tables(status, subscribers), true)
    }

    #[test]
    fn each_state_has_its_next_step() {
        assert!(text(&State::NoTables, true).contains("`tidings migrate`"));
        let none = shown(Vec::new(), Vec::new());
        assert!(
            none.contains("outbox: 5\n") && none.contains("`tidings relay`"),
            "{none}"
        );
        let expected = "\
relay   leader  published  lag  oldest
orders  host:7      1,234   12   0.2 s

no problem was found
  -> `tidings status` shows the details, `tidings where` the newest events
";
        assert_eq!(shown(vec![relay()], Vec::new()), expected);
        let mut parked = relay();
        parked.parked = ParkedStatus {
            events: 3,
            aggregates: 1,
        };
        let mut stopped = relay();
        stopped.slot.active = false;
        stopped.heartbeat_age_seconds = Some(250.0);
        let both = shown(vec![parked, stopped], Vec::new());
        assert!(
            both.contains("events parked: 3")
                && both.contains("further problems: 1")
                && !both.contains("not running"),
            "{both}"
        );
        let stock = SubscriberStatus {
            pause: None,
            name: "stock".into(),
            instances: Vec::new(),
            parked: vec![ParkedTopic {
                topic: "order".into(),
                events: 7,
                aggregates: 3,
                runs: false,
                is_read: true,
            }],
        };
        let text = shown(vec![relay()], vec![stock]);
        assert!(
            text.contains("subscriber stock: parked events: 7\n  ->"),
            "{text}"
        );
    }

    #[test]
    fn scheduled_events_that_are_overdue_are_a_problem() {
        let with = |overdue_seconds| {
            let status = Status {
                schema: "tidings".into(),
                relays: vec![relay()],
                waiting_events: Some(5),
                scheduled: ScheduledStatus {
                    events: 3,
                    overdue_seconds: Some(overdue_seconds),
                },
            };
            text(&State::Tables(status, Vec::new()), true)
        };
        assert!(with(1.0).contains("no problem was found"));
        let late = with(65.0);
        assert!(
            late.ends_with(
                "\nthe first scheduled event has been due for 1 min 5 s\n  -> make sure that a \
                 relay leads; a relay that reads a Debezium table moves none\n"
            ),
            "{late}"
        );
    }

    #[test]
    fn any_number_of_relays_fits_one_screen() {
        let text = shown((0..100).map(|_| relay()).collect(), Vec::new());
        assert!(text.contains("and 92 more"), "{text}");
        assert!(text.lines().count() < 20, "{text}");
    }
}
