//! Integration tests that need real services. They form one binary, so that the services start only
//! once.

// The runtime of a test owns its tasks, and ends with the test.
#![allow(clippy::disallowed_methods)]

mod chaos;
mod cli;
mod console;
mod deploy;
mod grants;
mod health;
mod migrate;
mod outbox;
mod publish_example;
mod publishing_clients;
mod quickstart_example;
mod relay;
mod saga;
mod shop_example;
mod shop_page;
mod subscriber;
mod support;
mod testing;
mod traces;
