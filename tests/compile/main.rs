//! What the compiler says of a subscriber that is put together wrongly: the messages are part of the interface.
//!
//! After a change, `TRYBUILD=overwrite cargo test --test compile` writes them anew; read the difference.

#[test]
fn a_subscriber_that_cannot_work_does_not_compile_and_says_what_to_do() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile/pass/*.rs");
    cases.compile_fail("tests/compile/fail/*.rs");
}
