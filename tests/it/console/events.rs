//! The page of events: search, parts of the list, the path of one event, and its payload.

use tidings::saga::SagaStatus;

use super::seed::{CAUSE, EVENT, SAGA, seeded};
use super::{Console, links};
use crate::support::eventually::until_blocking;
use crate::support::services::{brokers, migrated_database};
use crate::support::shop::{Shop, place_order};

#[tokio::test(flavor = "multi_thread")]
async fn events_are_listed_newest_first_and_found_by_id_or_aggregate_in_parts() {
    let database = migrated_database().await;
    sqlx::query(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
         select 'order', (n % 2)::text || '/a&b', 'Placed' || n, '{}' from generate_series(1, 120) n",
    )
    .execute(&database.pool)
    .await
    .expect("events");
    tokio::task::block_in_place(|| {
        let console = Console::start(&[&database.url], None);
        let types = |page: &str| -> Vec<u32> {
            let cells = page.split("<div>Placed").skip(1);
            let number = |cell: &str| cell.split(' ').next().and_then(|n| n.parse().ok());
            cells.map(|cell| number(cell).expect("a number")).collect()
        };
        let newest = console.page("/console/events");
        assert_eq!(types(&newest), (71..=120).rev().collect::<Vec<_>>());
        assert!(
            newest.contains("data-live"),
            "the newest events update by themselves"
        );
        let earlier = console.page(&links(&newest, "before=")[0]);
        assert_eq!(types(&earlier), (21..=70).rev().collect::<Vec<_>>());
        assert!(!earlier.contains("data-live"), "{earlier}");
        let last = console.page(&links(&earlier, "before=")[0]);
        assert_eq!(types(&last), (1..=20).rev().collect::<Vec<_>>());
        assert!(links(&last, "before=").is_empty(), "{last}");

        let of_aggregate = links(&newest, "q=order%2F1%2Fa%26b")[0].clone();
        let odd = console.page(&of_aggregate);
        let expected: Vec<u32> = (21..=120).rev().filter(|n| n % 2 == 1).collect();
        assert_eq!(types(&odd), expected);
        let rest = console.page(&links(&odd, "before=")[0]);
        let expected: Vec<u32> = (1..=20).rev().filter(|n| n % 2 == 1).collect();
        assert_eq!(types(&rest), expected);

        let path = links(&newest, "event=")[0].clone();
        let id = path.split("event=").nth(1).expect("an id");
        let found = console.page(&format!("/console/events?q=+{id}+"));
        assert!(
            found.contains("Placed120") && found.contains(">inserted<"),
            "{found}"
        );
        for (words, text) in [
            ("order", "neither an event id nor an aggregate"),
            ("/7", "neither an event id nor an aggregate"),
            ("order/9", "no event of this aggregate"),
            (
                "01940000-0000-7000-8000-0000000000ff",
                "No place that was read contains a trace",
            ),
        ] {
            let page = console.page(&format!("/console/events?q={words}"));
            assert!(page.contains(text), "{words}: {page}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_an_event_shows_its_path_and_links_to_every_place() {
    let mut shop = Shop::open().await;
    shop.run(place_order());
    shop.serve();
    shop.place([7]).await;
    shop.until(7, SagaStatus::Completed).await;
    let url = shop.database.url.clone();
    let placed = sqlx::query_scalar::<_, uuid::Uuid>(
        "select id from tidings.outbox where type = 'OrderPlaced'",
    );
    let placed = placed
        .fetch_one(&shop.database.pool)
        .await
        .expect("an event");
    tokio::task::block_in_place(|| {
        let console = Console::start(&[&url], Some(&brokers()));
        let page = until_blocking("the position includes the event", || {
            let page = console.page(&format!("/console/events?event={placed}"));
            page.contains(">published<").then_some(page)
        });
        for text in [
            ">inserted<",
            ">in Kafka<",
            ">handled<",
            "Led to",
            "StockReserved",
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        assert!(!page.contains("Not read"), "{page}");
        // The links of the tree lead to the reply, which belongs to the saga.
        let effects = page.split("Led to").nth(1).expect("effects");
        let pages: Vec<String> = links(effects, "event=")
            .iter()
            .map(|link| console.page(link))
            .collect();
        let reply = pages
            .iter()
            .find(|page| page.contains("StockReserved</h2>"))
            .expect("the reply");
        let causes = reply.split("Caused by").nth(1).expect("causes");
        let (first, second) = (causes.find("OrderPlaced"), causes.find("ReserveStock"));
        assert!(first.is_some() && first < second, "{reply}");
        let saga = console.page(&links(reply, "/console/sagas?saga=")[0]);
        assert!(saga.contains(">completed<"), "{saga}");

        let records = console.page("/console/events?q=order/7&records=24");
        let records = records.split("Records in Kafka").nth(1).expect("records");
        assert!(
            records.contains(&placed.to_string()) && records.contains("OrderPlaced"),
            "{records}"
        );
        let none = console.page("/console/events?q=order/8&records=1");
        assert!(none.contains("has no record of this aggregate"), "{none}");
    });
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_is_shown_on_request_and_a_place_that_was_not_read_is_listed() {
    let seeded = seeded("teapot").await;
    let sizes =
        "insert into tidings.outbox (id, aggregatetype, aggregateid, type, payload, payload_bytes)
        values ('01940000-0000-7000-8000-0000000000a1', 'order', '1', 'Large',
                json_build_object('a', repeat('ä', 70000)), null),
            ('01940000-0000-7000-8000-0000000000a2', 'order', '1', 'Whole',
                json_build_object('a', repeat('ä', 60000)), null),
            ('01940000-0000-7000-8000-0000000000a3', 'order', '1', 'Binary', null,
                decode(repeat('ff', 100000), 'hex'))";
    sqlx::query(sizes)
        .execute(&seeded.database.pool)
        .await
        .expect("events");
    let other = migrated_database().await;
    sqlx::raw_sql("drop table tidings.subscriber_parked")
        .execute(&other.pool)
        .await
        .expect("the table exists");
    tokio::task::block_in_place(|| {
        let urls = [seeded.database.url.as_str(), &other.url];
        let console = Console::start(&urls, None);
        let event = format!("/console/events?db=0&event={EVENT}");
        let page = console.page(&event);
        for text in [
            ">parked<",
            ">handled<",
            "Caused by",
            "Led to",
            "no brokers are configured",
            "tables of Tidings are not",
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        for target in [
            format!("/console/events?db=0&event={CAUSE}"),
            format!("/console/sagas?db=0&saga={SAGA}"),
            "/console/parked?db=0&relay=billing&aggregate=teapot".into(),
            "/console/parked?db=0&subscriber=teapot".into(),
        ] {
            let found = links(&page, &target);
            assert!(!found.is_empty(), "{target}: {page}");
            console.page(&found[0]);
        }
        // The event is found from another database, too.
        let away = console.page(&format!("/console/events?db=1&event={EVENT}"));
        assert!(away.contains(">inserted<"), "{away}");
        let payload = console.page(&links(&away, "payload=1")[0]);
        assert!(
            payload.contains("&quot;teapot&quot;") && payload.contains("x-note"),
            "{payload}"
        );
        assert!(!page.contains("x-note") && !page.contains("<pre"), "{page}");
        let note = |id: &str| {
            let id = format!("01940000-0000-7000-8000-0000000000{id}");
            let page = console.page(&format!("/console/events?db=0&event={id}&payload=1"));
            let note = page.split("Only the first").nth(1);
            note.and_then(|rest| rest.split('<').next())
                .map(str::to_owned)
        };
        assert_eq!(
            note("a1").as_deref(),
            Some(" 128.0 KiB of 136.7 KiB are shown.")
        );
        assert_eq!(note("a2"), None);
        assert_eq!(
            note("a3").as_deref(),
            Some(" 4.0 KiB of 97.7 KiB are shown.")
        );

        let url = [seeded.database.url.as_str()];
        let hidden = Console::with(&url, None, &["--hide-payloads"], None);
        let page = hidden.page(&format!("/console/events?event={EVENT}&payload=1"));
        assert!(
            page.contains(">inserted<")
                && !page.contains("x-note")
                && !page.contains("<pre")
                && links(&page, "payload=1").is_empty(),
            "{page}"
        );
    });
}
