//! The console in a real browser: hostile values, accessibility, live updates and actions.

use super::seed::{EVENT, SAGA, SCHEDULED, letter, letter_topic, rows, seeded};
use super::{Console, PASSWORD, USER};
use crate::support::browser::{self, Browser};
use crate::support::running::Place;
use crate::support::services::{brokers, migrated_database};

/// Value of every text that a publisher controls. It would set `window.hacked`, break out of
/// attributes and tags, or reorder the page.
const HOSTILE: &str = "</td></pre><script>window.hacked=1</script><img src=x \
    onerror=\"window.hacked=1\">'\"><svg onload=window.hacked=1>\u{202e}\u{7}{{7*7}}javascript:alert(1)\
    aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Expression for all elements with text whose contrast is below 4.5 (WCAG 2.2, 1.4.3).
const LOW_CONTRAST: &str = "(() => {
    const parse = color => (color.match(/[\\d.]+/g) ?? []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const back = element => {
        for (let e = element; e; e = e.parentElement) {
            const color = parse(getComputedStyle(e).backgroundColor);
            if (color.length === 3 || color[3] > .9) return color;
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll('body *')].filter(element => {
        const own = [...element.childNodes].some(n => n.nodeType === 3 && n.nodeValue.trim());
        if (!own || !element.checkVisibility() || element.closest('.unseen, .skip')) return false;
        const [a, b] = [light(parse(getComputedStyle(element).color)), light(back(element))];
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5;
    }).map(element => `${element.tagName}.${element.className} ${element.innerText}`);
})()";

/// Expression for controls without an accessible name, and repeated ids.
const UNNAMED: &str = "(() => {
    const named = e => (e.getAttribute('aria-label') || e.innerText || e.labels?.length
        || e.title || '').toString().trim();
    const controls = [...document.querySelectorAll('a, button, input:not([type=hidden]), \
        select, [role=img], nav, article')];
    const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
    return [...controls.filter(e => !named(e)).map(e => e.outerHTML),
        ...ids.filter((id, i) => ids.indexOf(id) !== i)];
})()";

/// Expression for the sum of the layout shifts since the page was opened.
const LAYOUT_SHIFT: &str = "new Promise(done => {
    let sum = 0;
    const add = list => list.getEntries().forEach(entry => { sum += entry.value; });
    new PerformanceObserver(add).observe({ type: 'layout-shift', buffered: true });
    setTimeout(() => done(sum), 300);
})";

fn pages(letters: &str, aggregate: &str) -> Vec<(&'static str, String)> {
    let path = |path: &str, parameters: &[(&str, &str)]| {
        let mut query = url::form_urlencoded::Serializer::new(format!("/console/{path}?"));
        query.extend_pairs(parameters);
        query.finish()
    };
    let of_aggregate = [
        ("relay", "billing"),
        ("aggregate", aggregate),
        ("event", EVENT),
    ];
    vec![
        ("overview", "/console".into()),
        ("events", "/console/events".into()),
        (
            "events-of-aggregate",
            path("events", &[("q", aggregate), ("records", "1")]),
        ),
        ("events-wrong-search", path("events", &[("q", letters)])),
        (
            "event",
            path("events", &[("event", EVENT), ("payload", "1")]),
        ),
        ("parked", "/console/parked".into()),
        ("parked-aggregate", path("parked", &of_aggregate)),
        ("dead-letters", "/console/dead-letters".into()),
        (
            "dead-letters-topic",
            path("dead-letters", &[("topic", letters)]),
        ),
        (
            "dead-letter-0",
            path("dead-letters", &[("topic", letters), ("letter", "0/0")]),
        ),
        (
            "dead-letter-1",
            path("dead-letters", &[("topic", letters), ("letter", "1/0")]),
        ),
        ("subscribers", "/console/subscribers".into()),
        ("sagas", "/console/sagas".into()),
        ("saga", path("sagas", &[("saga", SAGA)])),
        ("scheduled", path("scheduled", &[("event", SCHEDULED)])),
        (
            "confirm",
            path(
                "confirm",
                &[("op", "discard-parked"), ("relay", "billing"), ("all", "1")],
            ),
        ),
        ("actions", "/console/actions".into()),
    ]
}

/// Opens every page, wide and narrow, light and dark, and checks what must hold for each.
fn check(browser: &Browser, console: &Console, pages: &[(&str, String)], pictures: &str) {
    for (name, path) in pages {
        browser.go(&format!(
            "http://{USER}:{PASSWORD}@{}{path}",
            console.address
        ));
        browser.until_true("document.readyState === 'complete'");
        match *name {
            "overview" => browser.until_true("document.querySelector('.relay') !== null"),
            _ => assert_eq!(browser.value(LAYOUT_SHIFT), 0, "{name} shifts its layout"),
        }
        for (scheme, width, height) in [
            ("light", 1_280, 1_000),
            ("dark", 1_280, 1_000),
            ("light", 360, 1_400),
            ("dark", 360, 1_400),
        ] {
            browser.colours(scheme);
            browser.resize(width, height);
            assert_eq!(
                browser.value(&format!("document.documentElement.scrollWidth <= {width}")),
                true,
                "{name} is wider than {width}"
            );
            let low = browser.value(LOW_CONTRAST);
            assert_eq!(low, serde_json::json!([]), "contrast of {name}, {scheme}");
            browser.picture(&format!("{pictures}-{name}-{scheme}-{width}.png"));
        }
        let unnamed = browser.value(UNNAMED);
        assert_eq!(unnamed, serde_json::json!([]), "labels of {name}");
        assert_eq!(
            browser.value("document.querySelectorAll('h1').length"),
            1,
            "{name}"
        );
        assert_eq!(browser.value("document.documentElement.lang"), "en");
        assert_eq!(browser.value("typeof window.hacked"), "undefined", "{name}");
        let foreign = "document.querySelectorAll('main script, main img, main [onload]').length";
        assert_eq!(browser.value(foreign), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_values_run_nothing_and_break_no_page() {
    if !browser::is_installed() {
        return;
    }
    let database = migrated_database().await;
    rows(&database.pool, HOSTILE).await;
    let letters = letter_topic(&brokers()).await;
    letter(&letters, HOSTILE).await;
    tokio::task::spawn_blocking(move || {
        let console = Console::with_actions(&[&database.url], Some(&brokers()));
        // The page of actions has one whose texts are hostile.
        let mut confirm = url::form_urlencoded::Serializer::new("/console/confirm?".to_owned());
        confirm
            .append_pair("op", "retry-parked")
            .append_pair("relay", HOSTILE);
        confirm.append_pair("reason", HOSTILE);
        let confirmation = console.page(&confirm.finish());
        assert_eq!(console.submit(&confirmation).status, 303);
        let aggregate = format!("{HOSTILE}/{HOSTILE}");
        let browser = Browser::open("about:blank");
        check(&browser, &console, &pages(&letters, &aggregate), "hostile");
        // A violation of the Content-Security-Policy is an error, too.
        assert_eq!(browser.errors(), Vec::<String>::new());
    })
    .await
    .expect("the task does not panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_update_without_losing_the_focus_and_actions_work_by_keyboard() {
    if !browser::is_installed() {
        return;
    }
    let seeded = seeded("teapot").await;
    let place = Place::new(&seeded.database);
    let relay = place.start();
    sqlx::query(
        "insert into tidings.outbox (aggregatetype, aggregateid, type, payload)
         select 'order', n::text, 'Placed', '{}' from generate_series(1, 50) n",
    )
    .execute(&seeded.database.pool)
    .await
    .expect("events");
    let pool = seeded.database.pool.clone();
    let other = migrated_database().await;
    let (url, other_url) = (seeded.database.url.clone(), other.url.clone());
    let letters = seeded.letters.clone();
    let runtime = tokio::runtime::Handle::current();
    let playing = tokio::task::spawn_blocking(move || {
        let console = Console::with_actions(&[&url, &other_url], Some(&brokers()));
        let browser = Browser::open("about:blank");
        check(
            &browser,
            &console,
            &pages(&letters, "teapot/teapot"),
            "console",
        );
        browser.colours("light");
        browser.resize(1_280, 1_000);

        browser.go(&format!(
            "http://{USER}:{PASSWORD}@{}/console",
            console.address
        ));
        browser
            .until_true("document.getElementById('live-state').innerText === 'updates by itself'");
        browser.tab();
        assert_eq!(browser.value("document.activeElement.className"), "skip");
        browser.until_true("document.querySelector('.tile') !== null");
        browser.value("document.querySelector('.tile').focus()");
        browser.value("document.querySelector('details').open = true");
        let insert = "insert into tidings.relay (name, position) values ('aaa', '{}')";
        runtime
            .block_on(sqlx::query(insert).execute(&pool))
            .expect("a relay");
        browser.until_true("document.querySelector('article h3').innerText === 'aaa'");
        assert_eq!(
            browser.value("document.activeElement.classList.contains('tile')"),
            true,
            "the focus stays"
        );

        browser.go(&format!(
            "http://{USER}:{PASSWORD}@{}/console/scheduled",
            console.address
        ));
        browser.click("a[href*=cancel-scheduled]");
        browser.until_true("document.getElementById('affected').innerText === '1'");
        browser.click("button[type=submit]");
        browser.until_true("document.body.innerText.includes('1 cancelled')");
        browser.until_true("document.body.innerText.includes('No event is scheduled.')");
        assert!(console.log().contains("cancel scheduled event"));
        events_by_keyboard(&browser, &console);
        assert_eq!(browser.errors(), Vec::<String>::new());
    });
    playing.await.expect("the task does not panic");
    relay.stop().await;
}

/// Searches an aggregate, opens an event and its payload, with the keyboard alone.
fn events_by_keyboard(browser: &Browser, console: &Console) {
    let address = &console.address;
    browser.go(&format!(
        "http://{USER}:{PASSWORD}@{address}/console/events"
    ));
    let is_at = |expression: &str| {
        for _ in 0..100 {
            if browser.value(&format!("document.activeElement.matches('{expression}')")) == true {
                return;
            }
            browser.tab();
        }
        panic!("no tab leads to {expression}");
    };
    is_at("input[type=search]");
    browser.keys("teapot/teapot\u{e007}");
    browser.until_true("document.querySelector('input[type=search]').value === 'teapot/teapot'");
    browser.until_true("document.querySelectorAll('tbody tr').length === 3");
    let id = format!("a[href*=\"event={EVENT}\"]");
    is_at(&id);
    browser.keys("\u{e007}");
    browser.until_true("document.getElementById('event-title')?.innerText === 'teapot'");
    is_at("a[href*=\"payload=1\"]");
    browser.keys("\u{e007}");
    browser.until_true("document.querySelector('pre')?.innerText === '\"teapot\"'");
}
