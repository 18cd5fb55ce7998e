//! Compiler messages for misuses of `#[derive(DomainEvent)]`. They are part of the interface.
//!
//! After a change, run `TRYBUILD=overwrite cargo test -p tidings-derive` to rewrite the expected
//! messages, and review the difference.

mod expansion;

#[test]
fn faults_are_reported_where_they_are_and_with_a_remedy() {
    trybuild::TestCases::new().compile_fail("tests/derive/fail/*.rs");
}
