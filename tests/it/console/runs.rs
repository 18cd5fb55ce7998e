//! Actions that take longer than a request: a replay of many dead letters.

use std::time::Duration;

use dev_services::KafkaOptions;

use super::seed::{letter_topic, letters};
use super::{Console, links};
use crate::support::eventually::until_blocking;
use crate::support::records::{Reader, create_topic};
use crate::support::services::{migrated_database, own_kafka};

/// Letters of the topic. Each is acknowledged before the next one is sent, so their replay takes
/// longer than the requests of a page.
const LETTERS: usize = 9_000;

/// Returns the number of letters that a replay of all would affect.
fn left(console: &Console, link: &str) -> usize {
    let page = console.page(link);
    let number = page
        .split("<strong id=\"affected\">")
        .nth(1)
        .and_then(|rest| rest.split('<').next())
        .unwrap_or_else(|| panic!("{page}"));
    number.replace(',', "").parse().expect("a number")
}

/// The broker is behind a proxy, which holds the replay while it is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_replay_shows_its_progress_blocks_no_page_and_survives_a_shutdown() {
    let database = migrated_database().await;
    let kafka = own_kafka(KafkaOptions::new().proxied(true)).await;
    let (brokers, proxied) = (kafka.brokers(), kafka.proxied_brokers());
    let topic = letter_topic(&brokers).await;
    let redrive = topic.replace(".dlt", ".redrive");
    create_topic(&brokers, &redrive, 1).await;
    letters(&brokers, &topic, "broken", LETTERS).await;
    let replayed = || Reader::new(&brokers, &redrive).read_to_the_end().len();
    tokio::task::block_in_place(|| {
        let mut console = Console::with_actions(&[&database.url], Some(&proxied));
        let page = console.page(&format!("/console/dead-letters?topic={topic}"));
        let all = links(&page, "op=replay-letters")
            .into_iter()
            .find(|link| link.contains("all=1"))
            .expect("all");
        assert_eq!(left(&console, &all), LETTERS);
        let confirmation = console.page(&all);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| console.submit(&confirmation));
            let running = console.until("/console/actions", " of 9,000 letters");
            assert!(running.contains(">running<"), "{running}");
            let topics = console.page("/console/dead-letters");
            assert!(topics.contains(&topic), "{topics}");
            kafka.proxy().stall();
            let first = first.join().expect("the request does not panic");
            assert_eq!(first.header("location"), Some("/console/actions"));
        });
        // A second one waits for the first instead of replaying the same letters.
        let second = console.submit(&confirmation);
        assert_eq!(second.header("location"), Some("/console/actions"));
        let running = console.page("/console/actions");
        assert_eq!(running.matches(">running<").count(), 2, "{running}");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The console has been told to stop by then.
                std::thread::sleep(Duration::from_millis(500));
                kafka.proxy().resume();
            });
            assert_eq!(console.stop(), Some(0), "{}", console.log());
        });

        let before = replayed();
        assert!(before > 0 && before < LETTERS, "{before}");
        let console = Console::with_actions(&[&database.url], Some(&proxied));
        let rest = left(&console, &all);
        assert_eq!(
            rest,
            LETTERS - before,
            "replayed letters are not listed again"
        );
        console.submit(&console.page(&all));
        until_blocking("the rest is replayed", || {
            let page = console.page("/console/actions");
            page.contains(">done<").then_some(())
        });
        assert_eq!(replayed(), LETTERS, "each letter is replayed once");
        assert_eq!(left(&console, &all), 0);
    });
}
