//! Integration tests that need real services. They form one binary, so that the services start only
//! once.

mod browser;
mod chaos;
mod cli;
mod health;
mod http;
mod migrate;
mod outbox;
mod publish_example;
mod quickstart_example;
mod relay;
mod saga;
mod services;
mod shop_example;
mod shop_page;
mod subscriber;
mod testing;
