//! Everything that needs real services, in one binary: they are started once.

mod chaos;
mod cli;
mod health;
mod migrate;
mod outbox;
mod publish_example;
mod quickstart_example;
mod relay;
mod saga;
mod services;
mod shop_example;
mod subscriber;
mod testing;
