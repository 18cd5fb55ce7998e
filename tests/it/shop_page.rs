//! The page of `examples/shop` in a real browser.

use crate::shop_example::{ONE, Shop, shop};
use crate::support::browser::{self, Browser};

/// Expression for the card of the newest order.
const NEWEST: &str = "document.querySelector('#orders .order')";

/// Expression for the steps of the newest order's saga, each with its state: `done accept`.
const STEPS: &str = "[...document.querySelectorAll('#orders .order:first-child .steps \
    li')].map(step => `${step.className} ${step.dataset.step}`)";

/// Places an order and waits until the page shows `number` orders.
fn order_a_teapot(browser: &Browser, number: usize) {
    browser.click("button[data-order*=teapot]");
    browser.until_true(&format!(
        "document.querySelectorAll('#orders .order').length === {number}"
    ));
}

fn until_newest_is(browser: &Browser, status: &str) {
    browser.until_true(&format!("{NEWEST}.dataset.status === '{status}'"));
}

fn until_circuit_is(browser: &Browser, state: &str) {
    browser.until_true(&format!(
        "document.querySelector('[data-service=payment]').dataset.circuit === '{state}'"
    ));
}

fn events_are_listed(browser: &Browser, types: &[&str]) {
    for event_type in types {
        browser.until_true(&format!(
            "[...document.querySelectorAll('#events strong')].some(type \
            => type.innerText === '{event_type}')"
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_page_one_places_orders_breaks_a_service_and_sees_the_saga_go_back_and_the_circuit_open()
 {
    if !browser::is_installed() {
        return;
    }
    let _one = ONE.lock().await;
    let command = shop().await;
    let playing = tokio::task::spawn_blocking(move || {
        let shop = Shop::open(command);
        let browser = Browser::open(&format!("http://{}/", shop.address));
        browser.resize(1_280, 900);
        assert_eq!(browser.value("document.title"), "A small shop");

        order_a_teapot(&browser, 1);
        until_newest_is(&browser, "completed");
        browser.until_true(&format!(
            "{STEPS}.join() === 'done accept,done reserve-stock,done \
            take-payment,done ship,done complete'"
        ));
        browser.until_true(&format!(
            "{NEWEST}.innerText.includes('on its way to Norway')"
        ));
        events_are_listed(
            &browser,
            &[
                "OrderPlaced",
                "ReserveStock",
                "StockReserved",
                "TakePayment",
                "PaymentTaken",
                "ShipOrder",
                "OrderShipped",
                "OrderCompleted",
            ],
        );
        browser.picture("completed.png");

        browser.click("button[aria-label='Break payment']");
        browser.until_true(
            "document.querySelector('[data-service=payment]').innerText.includes('out of order')",
        );
        order_a_teapot(&browser, 2);
        until_newest_is(&browser, "cancelled");
        browser.until_true(&format!(
            "{NEWEST}.innerText.includes('the card terminal is out of order')"
        ));
        browser.until_true(&format!(
            "{STEPS}.join() === 'undone accept,undone reserve-stock,refused \
                take-payment,ahead ship,ahead complete'"
        ));
        events_are_listed(
            &browser,
            &["PaymentRefused", "ReleaseStock", "OrderCancelled"],
        );
        // The page continues to request the order and thereby its payment.
        until_circuit_is(&browser, "open");
        events_are_listed(&browser, &["CircuitChanged"]);
        browser.until_true(&format!("{NEWEST}.innerText.includes('does not answer')"));
        browser.picture("broken.png");

        browser.click("button[aria-label='Mend payment']");
        order_a_teapot(&browser, 3);
        until_newest_is(&browser, "completed");
        until_circuit_is(&browser, "closed");
        browser.until_true(&format!("{NEWEST}.innerText.includes('10 € paid')"));
        browser.picture("mended.png");

        browser.resize(360, 740);
        assert_eq!(
            browser.value("document.documentElement.scrollWidth <= 360"),
            true,
            "nothing is wider than the screen of a phone"
        );
        browser.picture("phone.png");
        assert_eq!(browser.errors(), Vec::<String>::new());
    });
    playing.await.expect("the task does not panic");
}
