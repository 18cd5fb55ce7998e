//! What the compiler says of `#[derive(DomainEvent)]`: the messages are part of the interface.
//!
//! After a change, `TRYBUILD=overwrite cargo test -p tidings-derive` writes them anew; read the difference.

mod expansion;

#[test]
fn faults_are_reported_where_they_are_and_with_a_remedy() {
    trybuild::TestCases::new().compile_fail("tests/derive/fail/*.rs");
}
