//! A real Postgres and a real Kafka, started for you.
