//! Actions that take longer than a request: a replay of many dead letters.

use super::seed::{letter_topic, letters};
use super::{Console, links};
use crate::support::eventually::until_blocking;
use crate::support::records::{Reader, create_topic};
use crate::support::services::{brokers, migrated_database};

/// Letters of the topic. Each is acknowledged before the next one is sent, so their replay takes
/// many seconds on any machine.
const LETTERS: usize = 20_000;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_long_replay_shows_its_progress_blocks_no_page_and_survives_a_shutdown() {
    let database = migrated_database().await;
    let topic = letter_topic().await;
    let redrive = topic.replace(".dlt", ".redrive");
    create_topic(&brokers(), &redrive, 1).await;
    letters(&topic, "broken", LETTERS).await;
    tokio::task::block_in_place(|| {
        let mut console = Console::with_actions(&[&database.url], Some(&brokers()));
        let page = console.page(&format!("/console/dead-letters?topic={topic}"));
        let all = links(&page, "op=replay-letters")
            .into_iter()
            .find(|link| link.contains("all=1"))
            .expect("all");
        assert_eq!(left(&console, &all), LETTERS);
        let confirmation = console.page(&all);
        let response = console.submit(&confirmation);
        assert_eq!(response.header("location"), Some("/console/actions"));
        let running = console.until("/console/actions", " of 20,000 letters");
        assert!(running.contains(">running<"), "{running}");
        // A second one waits for the first instead of replaying the same letters.
        let second = console.submit(&confirmation);
        assert_eq!(second.header("location"), Some("/console/actions"));
        let topics = console.page("/console/dead-letters");
        assert!(topics.contains(&topic), "{topics}");
        let running = console.page("/console/actions");
        assert_eq!(running.matches(">running<").count(), 2, "{running}");
        assert_eq!(console.stop(), Some(0), "{}", console.log());

        let replayed = Reader::new(&brokers(), &redrive).read_to_the_end().len();
        assert!(replayed > 0 && replayed < LETTERS, "{replayed}");
        let console = Console::with_actions(&[&database.url], Some(&brokers()));
        let rest = left(&console, &all);
        assert_eq!(
            rest,
            LETTERS - replayed,
            "replayed letters are not listed again"
        );
        console.submit(&console.page(&all));
        until_blocking("the rest is replayed", || {
            let page = console.page("/console/actions");
            page.contains(">done<").then_some(())
        });
        let replayed = Reader::new(&brokers(), &redrive).read_to_the_end().len();
        assert_eq!(replayed, LETTERS, "each letter is replayed once");
        assert_eq!(left(&console, &all), 0);
    });
}
