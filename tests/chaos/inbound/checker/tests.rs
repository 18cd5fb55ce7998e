//! Tests that plant each kind of fault in a good history.

use super::super::evidence::{Committed, Effect};
use super::super::hostile::Sent;
use super::super::topics::Letter;
use super::*;

fn committed(aggregate: &str, version: i64, fails: i32) -> (String, Committed) {
    let topic = if aggregate.starts_with(LEDGER) {
        "chaos-account"
    } else {
        "chaos-stock"
    };
    (
        format!("{aggregate}/{version}"),
        Committed {
            aggregate: aggregate.into(),
            version,
            topic: topic.into(),
            fails,
        },
    )
}

fn effect(aggregate: &str, version: i64) -> Effect {
    let (event_id, event) = committed(aggregate, version, 0);
    let consumer = if aggregate.starts_with(LEDGER) {
        LEDGER
    } else {
        "shop"
    };
    Effect {
        consumer: consumer.into(),
        event_id,
        topic: event.topic,
        attempt: 1,
        mark: None,
    }
}

fn letter(event_id: Option<&str>, mark: Option<&str>) -> Letter {
    let own = |text: Option<&str>| text.map(str::to_owned);
    Letter {
        topic: "dlt".into(),
        partition: 0,
        offset: 0,
        mark: own(mark),
        event_id: own(event_id),
        reason: "broken".into(),
    }
}

fn sent(mark: &str, hostility: Hostility) -> Sent {
    Sent {
        mark: mark.into(),
        hostility,
        topic: "chaos-stock".into(),
        partition: 0,
        offset: 0,
    }
}

fn order(status: &str, saga: &str) -> Order {
    let done = status == "completed";
    Order {
        id: 1,
        quantity: 3,
        cents: 500,
        refused_by: if done {
            String::new()
        } else {
            "payment".into()
        },
        status: status.into(),
        stock: if done { -3 } else { 0 },
        money: if done { 500 } else { 0 },
        parcels: i64::from(done),
        audits: 1,
        saga: Some(saga.into()),
    }
}

/// Three bookings on `a`, the third of which must fail, two commands, two orders and two hostile
/// records.
fn good() -> Evidence {
    let a = "ledger a";
    Evidence {
        committed: HashMap::from([
            committed(a, 1, 0),
            committed(a, 2, 0),
            committed(a, 3, 1),
            committed("chaos-stock 7", 10, 0),
            committed("chaos-stock 7", 14, 0),
        ]),
        effects: vec![
            effect(a, 1),
            effect("chaos-stock 7", 10),
            effect(a, 2),
            effect("chaos-stock 7", 14),
            Effect {
                attempt: 3,
                ..effect(a, 3)
            },
        ],
        orders: vec![
            order("completed", "completed"),
            order("cancelled", "compensated"),
        ],
        letters: vec![letter(None, Some("m1")), letter(Some("ledger a/3"), None)],
        hostile: vec![
            sent("m1", Hostility::Confluent),
            sent("m2", Hostility::UnknownType),
        ],
        ..Evidence::default()
    }
}

const LEDGER_GOOD: Tally = Tally {
    committed: 3,
    effects: 3,
    lost: 0,
    repeated: 0,
    out_of_order: 0,
    overtaken: 0,
    never_committed: 0,
    dead: 0,
    retried: 0,
};
const SHOP_GOOD: Tally = Tally {
    committed: 2,
    effects: 2,
    ..LEDGER_GOOD
};

fn judged(change: impl FnOnce(&mut Evidence)) -> Verdict {
    let mut evidence = good();
    change(&mut evidence);
    judge(&evidence)
}

fn tallies(change: impl FnOnce(&mut Evidence)) -> (Tally, Tally) {
    let verdict = judged(change);
    (verdict.ledger, verdict.shop)
}

#[test]
fn a_good_history_has_no_fault() {
    let verdict = judged(|_| ());
    assert_eq!((verdict.ledger, verdict.shop), (LEDGER_GOOD, SHOP_GOOD));
    assert_eq!(
        verdict.orders,
        Orders {
            completed: 1,
            cancelled: 1,
            ..Orders::default()
        }
    );
    assert_eq!(
        verdict.hostile[&Hostility::Confluent],
        Hostile {
            sent: 1,
            letters: 1,
            ..Hostile::default()
        }
    );
    assert_eq!(
        verdict.hostile[&Hostility::UnknownType],
        Hostile {
            sent: 1,
            skipped: 1,
            ..Hostile::default()
        }
    );
    assert!(verdict.examples.is_empty(), "{:?}", verdict.examples);
}

#[test]
fn a_lost_effect_is_found_and_does_not_make_later_ones_misordered() {
    assert_eq!(
        tallies(|e| drop(e.effects.remove(0))),
        (
            Tally {
                effects: 2,
                lost: 1,
                ..LEDGER_GOOD
            },
            SHOP_GOOD
        )
    );
}

#[test]
fn a_repeated_effect_is_a_repeat_and_not_misordered() {
    let (ledger, shop) = tallies(|e| {
        e.effects
            .extend([effect("ledger a", 1), effect("chaos-stock 7", 10)])
    });
    assert_eq!(
        ledger,
        Tally {
            effects: 4,
            repeated: 1,
            ..LEDGER_GOOD
        }
    );
    assert_eq!(
        shop,
        Tally {
            effects: 3,
            repeated: 1,
            ..SHOP_GOOD
        }
    );
}

#[test]
fn effects_in_the_wrong_order_are_found_unless_they_came_by_a_retry_topic() {
    assert_eq!(
        tallies(|e| e.effects.swap(0, 2)),
        (
            Tally {
                out_of_order: 1,
                ..LEDGER_GOOD
            },
            SHOP_GOOD
        )
    );
    assert_eq!(
        tallies(|e| e.effects.swap(1, 3)),
        (
            LEDGER_GOOD,
            Tally {
                out_of_order: 1,
                ..SHOP_GOOD
            }
        )
    );
    let retried = |e: &mut Evidence| {
        e.effects[0].topic = "chaos-account.ledger.retry.1s".into();
        e.effects.swap(0, 2);
    };
    assert_eq!(
        tallies(retried),
        (
            Tally {
                overtaken: 1,
                ..LEDGER_GOOD
            },
            SHOP_GOOD
        )
    );
}

#[test]
fn an_effect_of_what_was_rolled_back_is_found() {
    assert_eq!(
        tallies(|e| e.effects.push(effect("ledger b", 1))).0,
        Tally {
            never_committed: 1,
            ..LEDGER_GOOD
        }
    );
    assert_eq!(
        tallies(|e| e.effects.push(effect("chaos-stock 8", 1))).1,
        Tally {
            never_committed: 1,
            ..SHOP_GOOD
        }
    );
}

#[test]
fn a_dead_event_and_a_lost_attempt_are_found_if_no_handler_was_ordered_to_fail() {
    assert_eq!(
        tallies(|e| e.letters.push(letter(Some("ledger a/1"), None))).0,
        Tally {
            dead: 1,
            ..LEDGER_GOOD
        }
    );
    assert_eq!(
        tallies(|e| e.effects[0].attempt = 2).0,
        Tally {
            retried: 1,
            ..LEDGER_GOOD
        }
    );
    assert_eq!(
        judged(|e| e.letters.push(letter(Some("unknown"), None))).strange_letters,
        1
    );
    assert_eq!(
        judged(|e| e.letters.push(letter(None, None))).strange_letters,
        1
    );
}

#[test]
fn an_order_without_an_end_or_with_another_than_its_saga_is_found() {
    for (status, saga) in [
        ("placed", "running"),
        ("completed", "compensated"),
        ("cancelled", "completed"),
    ] {
        assert_eq!(
            judged(|e| e.orders.push(order(status, saga))).orders.open,
            1,
            "{status} {saga}"
        );
    }
    assert_eq!(
        judged(|e| e.orders.push(Order {
            saga: None,
            ..order("completed", "")
        }))
        .orders
        .open,
        1
    );
    assert_eq!(
        judged(|e| e.orders.push(order("cancelled", "failed")))
            .orders
            .failed,
        1
    );
}

#[test]
fn stock_money_and_parcels_that_do_not_balance_are_found() {
    for change in [
        (|order| order.stock = -6) as fn(&mut Order),
        |order| order.money = 0,
        |order| order.parcels = 2,
        |order| order.audits = 2,
        |order| order.refused_by = "stock".into(),
    ] {
        assert_eq!(judged(|e| change(&mut e.orders[0])).orders.unbalanced, 1);
    }
    for change in [
        (|order| order.stock = -3) as fn(&mut Order),
        |order| order.money = 500,
        |order| order.parcels = 1,
    ] {
        assert_eq!(judged(|e| change(&mut e.orders[1])).orders.unbalanced, 1);
    }
}

#[test]
fn an_order_that_no_service_refused_and_that_was_undone_is_late() {
    assert_eq!(
        judged(|e| e.orders[1].refused_by.clear()).orders,
        Orders {
            completed: 1,
            cancelled: 1,
            late: 1,
            ..Orders::default()
        }
    );
}

#[test]
fn a_hostile_record_with_another_end_than_the_promised_one_is_found() {
    let unaccounted = |change: fn(&mut Evidence)| {
        judged(change)
            .hostile
            .values()
            .map(|hostile| hostile.unaccounted)
            .sum::<usize>()
    };
    assert_eq!(unaccounted(|e| drop(e.letters.remove(0))), 1, "no end");
    assert_eq!(
        unaccounted(|e| e.letters.push(letter(None, Some("m2")))),
        1,
        "a letter in place of a skip"
    );
    assert_eq!(
        unaccounted(|e| e.effects.push(Effect {
            mark: Some("m1".into()),
            ..effect("ledger a", 1)
        })),
        1,
        "an effect"
    );
    assert_eq!(
        unaccounted(|e| e.effects.push(Effect {
            mark: Some("m2".into()),
            ..effect("ledger a", 1)
        })),
        1,
        "an effect"
    );
    let parked = |e: &mut Evidence| {
        e.letters.remove(0);
        e.parked.push("m1".into());
    };
    assert_eq!(
        unaccounted(parked),
        0,
        "a letter that the broker refuses is parked"
    );
    assert_eq!(judged(parked).parked, 0);
    let erased = |effects: usize| {
        let mut evidence = good();
        evidence.hostile.push(Sent {
            topic: "chaos-account".into(),
            ..sent("m3", Hostility::Tombstone)
        });
        evidence.effects.extend((0..effects).map(|_| Effect {
            mark: Some("m3".into()),
            ..effect("ledger a", 1)
        }));
        judge(&evidence).hostile[&Hostility::Tombstone].unaccounted
    };
    assert_eq!([0, 1, 2].map(erased), [1, 0, 1]);
}

#[test]
fn what_is_left_at_the_end_is_found() {
    assert_eq!(
        judged(|e| e.parked.push("chaos-account/0/7 broken".into())).parked,
        1
    );
    assert_eq!(
        judged(|e| e.anomalies.push("paid after its refund".into())).anomalies,
        1
    );
    assert_eq!(
        judged(|e| e.unfinished.push("chaos-account/0".into())).unfinished,
        1
    );
    assert_eq!(
        [(2, 2), (2, 1), (0, 3)].map(|skipped| judged(|e| e.skipped = skipped).miscounted),
        [0, 1, 3]
    );
}

#[test]
fn faults_are_described_with_their_event() {
    let verdict = judged(|e| drop(e.effects.pop()));
    assert_eq!(
        verdict.examples,
        ["ledger a version 3 (ledger a/3) has no effect"]
    );
}

#[test]
fn an_event_that_a_release_may_have_escalated_has_no_order() {
    let swapped = |fails| {
        let mut evidence = good();
        evidence.committed.extend([committed("ledger a", 1, fails)]);
        evidence.effects.swap(0, 2);
        let ledger = judge(&evidence).ledger;
        (ledger.out_of_order, ledger.overtaken)
    };
    assert_eq!([0, 1, 2].map(swapped), [(1, 0), (1, 0), (0, 1)]);
}
