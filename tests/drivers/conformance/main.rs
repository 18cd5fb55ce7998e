//! One suite of the outbox on every driver, against a real Postgres. Each driver publishes, and
//! sqlx reads what is in the tables.

mod database;
mod driver;
mod free;
mod suite;

use driver::{Diesel, DieselAsync, SeaOrm, Sqlx, TokioPostgres};

/// Declares the tests of the suite for one driver.
macro_rules! conforms {
    ($module:ident, $driver:ident, [$($test:ident),+ $(,)?]) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    crate::suite::$test::<crate::$driver>().await;
                }
            )+
        }
    };
}

macro_rules! all_conform {
    ($($module:ident: $driver:ident),+ $(,)?) => {$(
        conforms!($module, $driver, [
            an_event_exists_if_and_only_if_its_transaction_commits,
            a_row_has_every_value_of_its_event,
            several_events_keep_their_order_and_their_values,
            no_event_is_no_statement,
            a_draft_sets_headers_topic_time_and_id,
            scheduled_events_are_stored_and_cancelled,
            aggregates_are_locked_until_the_transaction_ends,
            nothing_is_published_outside_a_transaction_unless_allowed,
            an_event_that_could_never_be_delivered_leaves_the_transaction_usable,
            errors_of_the_server_have_the_same_names,
        ]);
    )+};
}

all_conform! {
    sqlx: Sqlx,
    tokio_postgres: TokioPostgres,
    diesel: Diesel,
    diesel_async: DieselAsync,
    sea_orm: SeaOrm,
}
