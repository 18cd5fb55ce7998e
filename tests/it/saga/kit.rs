//! The test kit for sagas, as the developer of a service uses it.

use std::time::Duration;

use tidings::saga::SagaStatus;
use tidings::subscriber::HandlerError;

use crate::support::shop::{
    PAY_WITHIN, PaymentReturned, PaymentTaken, PlaceOrder, ReleaseStock, ReserveStock,
    ReturnPayment, StockRefused, StockReserved, TakePayment, place_order,
};

fn order() -> PlaceOrder {
    PlaceOrder {
        order: 7,
        reserved: false,
    }
}

#[test]
fn a_saga_is_tested_step_by_step_with_its_replies() {
    let run = place_order()
        .given(order())
        .expect_such::<ReserveStock>(|command| command.order == 7)
        .expect_nothing();
    let run = run
        .reply(StockReserved { order: 7 })
        .expect::<TakePayment>()
        .reply(PaymentTaken { order: 7 })
        .expect_completed();
    assert!(run.state().reserved);
    assert_eq!(
        run.ended().map(|ended| ended.outcome),
        Some(SagaStatus::Completed)
    );
    place_order()
        .given(order())
        .expect::<ReserveStock>()
        .reply(StockRefused { order: 7 })
        .expect_nothing()
        .expect_compensated([]);
}

#[test]
fn its_time_is_virtual_and_late_replies_can_be_sent() {
    place_order()
        .given(order())
        .expect::<ReserveStock>()
        .reply(StockReserved { order: 7 })
        .expect::<TakePayment>()
        .advance(PAY_WITHIN + Duration::from_secs(1))
        .expect::<TakePayment>()
        .advance(PAY_WITHIN + Duration::from_secs(1))
        .expect::<ReturnPayment>()
        .reply_to::<TakePayment>(PaymentTaken { order: 7 })
        .expect_nothing()
        .reply_to::<ReturnPayment>(PaymentReturned { order: 7 })
        .expect::<ReleaseStock>()
        .expect_compensated(["pay", "reserve"]);
}

#[test]
fn a_local_step_has_a_stand_in() {
    let paid = |run: tidings::testing::SagaTest<PlaceOrder>| {
        run.expect::<ReserveStock>()
            .reply(StockReserved { order: 7 })
            .expect::<TakePayment>()
            .reply(PaymentTaken { order: 7 })
    };
    paid(
        place_order()
            .given(order())
            .local("confirm", |state| Ok(PlaceOrder { order: 8, ..state })),
    )
    .expect_completed();
    let failing = place_order()
        .given(order())
        .local("confirm", |_| Err(HandlerError::retry("closed")));
    let run = paid(failing)
        .advance(Duration::from_secs(15))
        .expect::<ReturnPayment>();
    assert_eq!(run.status(), SagaStatus::Compensating);
}

#[test]
#[should_panic(expected = "TakePayment is expected, and `ReserveStock` is sent")]
fn what_is_not_sent_is_told_with_what_was() {
    let _ = place_order().given(order()).expect::<TakePayment>();
}
