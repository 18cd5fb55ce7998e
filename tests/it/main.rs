//! Integration tests that need real services. They form one binary, so that the services start only
//! once.

mod chaos;
mod cli;
mod health;
mod migrate;
mod outbox;
mod publish_example;
mod quickstart_example;
mod relay;
mod saga;
mod shop_example;
mod shop_page;
mod subscriber;
mod support;
mod testing;
