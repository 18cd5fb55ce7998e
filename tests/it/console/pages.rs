//! Content of the pages: rows, empty states and errors.

use std::time::Instant;

use super::seed::{SAGA, SCHEDULED, seeded};
use super::{Console, basic};
use crate::support::running::Place;
use crate::support::services::{brokers, database, migrated_database};

#[tokio::test(flavor = "multi_thread")]
async fn each_page_shows_its_rows_and_records() {
    let seeded = seeded("teapot").await;
    tokio::task::block_in_place(|| {
        let console = Console::start(&[&seeded.database.url], Some(&brokers()));
        let overview = console.until("/console", "billing");
        for text in ["teapot", "No problems", "parked by relays", "exactly-once"] {
            assert_eq!(
                overview.contains(text),
                text != "No problems",
                "{text}: {overview}"
            );
        }
        assert!(overview.contains("reads the table: teapot"), "{overview}");

        let parked = console.page("/console/parked");
        for text in [
            "teapot/teapot",
            "inventory",
            ">3<",
            "Payload",
            "Of subscribers",
        ] {
            assert_eq!(parked.contains(text), text != "Payload", "{text}: {parked}");
        }
        let aggregate = "/console/parked?relay=billing&aggregate=teapot/teapot";
        let events = console.page(aggregate);
        assert!(events.contains("waits behind an earlier event"), "{events}");
        let id = "01940000-0000-7000-8000-000000000001";
        let event = console.page(&format!("{aggregate}&event={id}"));
        assert!(
            event.contains("&quot;teapot&quot;") && event.contains("x-note"),
            "{event}"
        );

        let letters = console.page("/console/dead-letters");
        assert!(letters.contains(&seeded.letters), "{letters}");
        let topic = format!("/console/dead-letters?topic={}", seeded.letters);
        let list = console.page(&topic);
        let place = list
            .split("&amp;letter=")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .expect("a letter");
        let letter = console.page(&format!("{topic}&letter={place}"));
        for text in ["kafka_dlt-original-topic", "Payload", "0/7 of order"] {
            assert!(letter.contains(text), "{text}: {letter}");
        }

        let subscribers = console.page("/console/subscribers");
        assert!(subscribers.contains("inventory") && subscribers.contains("1 parked event<"));
        let lag = console.page("/console/subscribers?subscriber=inventory");
        assert!(lag.contains("None of its topics exists"), "{lag}");

        let sagas = console.page("/console/sagas");
        assert!(
            sagas.contains("checkout") && sagas.contains("failed"),
            "{sagas}"
        );
        let saga = console.page(&format!("/console/sagas?saga={SAGA}"));
        for text in [
            "compensation failed",
            "✗ failed",
            "not started",
            "ReserveStock →",
        ] {
            assert!(saga.contains(text), "{text}: {saga}");
        }

        let scheduled = console.page("/console/scheduled");
        assert!(
            scheduled.contains(SCHEDULED) && scheduled.contains("in 59 min"),
            "{scheduled}"
        );
        let event = console.page(&format!("/console/scheduled?event={SCHEDULED}"));
        assert!(event.contains("&quot;teapot&quot;"), "{event}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_and_headers_are_hidden_on_request() {
    let seeded = seeded("kettle").await;
    tokio::task::block_in_place(|| {
        let url = [seeded.database.url.as_str()];
        let console = Console::with(&url, Some(&brokers()), &["--hide-payloads"], None);
        let id = "01940000-0000-7000-8000-000000000001";
        for path in [
            format!("/console/parked?relay=billing&aggregate=kettle/kettle&event={id}"),
            format!("/console/scheduled?event={SCHEDULED}"),
            format!("/console/sagas?saga={SAGA}"),
            format!("/console/dead-letters?topic={}&letter=0/0", seeded.letters),
            format!("/console/dead-letters?topic={}&letter=1/0", seeded.letters),
        ] {
            let page = console.page(&path);
            assert!(
                !page.contains("&quot;kettle&quot;")
                    && !page.contains("x-note")
                    && !page.contains("ce_specversion")
                    && !page.contains("<pre"),
                "{path}: {page}"
            );
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_without_rows_and_without_brokers_are_complete() {
    let database = migrated_database().await;
    tokio::task::block_in_place(|| {
        let console = Console::start(&[&database.url], None);
        console.until("/console", "No relay has run on schema tidings yet");
        for (path, text) in [
            ("/console/parked", "No relay has parked an event."),
            ("/console/parked", "No subscriber has parked an event."),
            ("/console/dead-letters", "No brokers are configured"),
            ("/console/dead-letters", "KAFKA_BROKERS"),
            ("/console/subscribers", "No subscriber has its inbox"),
            ("/console/sagas", "No saga has run in this database."),
            ("/console/scheduled", "No event is scheduled."),
        ] {
            let page = console.page(path);
            assert!(page.contains(text), "{path}: {page}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_shows_a_running_relay_with_its_lag() {
    let database = migrated_database().await;
    let place = Place::new(&database);
    let relay = place.start();
    sqlx::query(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
         select 'order', n::text, 'Placed', '{}' from generate_series(1, 250) n",
    )
    .execute(&database.pool)
    .await
    .expect("events");
    place.reader().until_distinct(250);
    tokio::task::block_in_place(|| {
        let console = Console::start(&[&database.url], None);
        console.until("/console", "250 events");
        // The relay reads the table until its slot exists.
        let page = console.until("/console", "No problems.");
        for text in [
            &place.name,
            "running",
            "No problems.",
            "Throughput",
            "Retained WAL",
            &place.topic,
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        assert!(page.contains("<strong>0</strong> events"), "{page}");
    });
    relay.stop().await;
    tokio::task::block_in_place(|| {
        let console = Console::start(&[&database.url], None);
        let page = console.until("/console", "not running");
        assert!(page.contains("tidings relay --name"), "{page}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_answer_is_shown_and_delays_no_other() {
    // A server that accepts connections and never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("an address");
    let (database, empty) = (migrated_database().await, database().await);
    tokio::task::block_in_place(|| {
        let silent = format!("postgres://x:y@{silent}/silent?connect_timeout=3");
        let urls = [silent.as_str(), &database.url, &empty.url];
        let console = Console::start(&urls, None);
        let began = Instant::now();
        let page = console.until("/console", "No relay has run on schema tidings yet");
        assert!(
            began.elapsed().as_secs() < 3,
            "{:?}: {page}",
            began.elapsed()
        );
        let page = console.until("/console", "cannot connect to");
        assert!(page.contains("silent") && !page.contains(":y@"), "{page}");
        console.until("/console", "run `tidings migrate`");
        let began = Instant::now();
        let page = console.page("/console/parked?db=1");
        assert!(page.contains("No relay has parked an event."), "{page}");
        assert!(began.elapsed().as_secs() < 3);
        let page = console.page("/console/parked?db=2");
        assert!(page.contains("tidings migrate"), "{page}");
        let page = console.page("/console/parked?db=0");
        assert!(page.contains("cannot be read"), "{page}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_exist_is_refused_and_never_replaced_by_another() {
    let database = migrated_database().await;
    sqlx::query("insert into tidings.relay (name, position) values ('billing', '{}')")
        .execute(&database.pool)
        .await
        .expect("a relay");
    tokio::task::block_in_place(|| {
        let console = Console::with_actions(&[&database.url], None);
        let authorization = basic();
        let status = |path: &str| {
            let headers = [("authorization", authorization.as_str())];
            console.request("GET", path, &headers, "").status
        };
        for db in ["1", "-1", "x", "99999999999999999999"] {
            for path in [
                "/console/parked?",
                "/console/sagas?",
                "/console/live?page=parked&",
                "/console/confirm?op=discard-parked&relay=billing&all=1&",
            ] {
                assert_eq!(status(&format!("{path}db={db}")), 404, "{path}{db}");
            }
        }
        for path in [
            "/console/parked?db=0",
            "/console/confirm?op=discard-parked&relay=billing&all=1&db=0",
        ] {
            assert_eq!(status(path), 200, "{path}");
        }
        for page in ["dead-letters", "unknown"] {
            assert_eq!(status(&format!("/console/live?page={page}")), 404, "{page}");
        }
        let confirmation =
            console.page("/console/confirm?op=discard-parked&relay=billing&all=1&db=0");
        let other = confirmation.replace("name=\"db\" value=\"0\"", "name=\"db\" value=\"1\"");
        assert_ne!(other, confirmation);
        assert_eq!(console.submit(&other).status, 404);
        assert_eq!(console.submit(&confirmation).status, 303);
    });
}
