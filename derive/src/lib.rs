//! `#[derive(DomainEvent)]`.
