//! Support for the tests: services, clients, and places that a test reads and writes.
//!
//! | file | content |
//! |---|---|
//! | `services` | Postgres and Kafka, and a database per test |
//! | `running` | a relay in this process or as the binary |
//! | `place` | a topic, a group and a running subscriber |
//! | `records` | a plain consumer of a topic |
//! | `rights` | the rights of a role, and a broker that enforces them |
//! | `history` | writers, and the checker of a relay's records |
//! | `eventually` | bounded waits |
//! | `terminal` | commands on a terminal |
//! | `shop` | services and sagas of a shop |
//! | `worlds` | the in-memory bus and the real services behind one trait |
//! | `languages` | programs in Java, Python, JavaScript and Go |
//! | `browser`, `http` | clients of a page and of an HTTP server |

pub(crate) mod browser;
pub(crate) mod eventually;
pub(crate) mod history;
pub(crate) mod http;
pub(crate) mod languages;
pub(crate) mod place;
pub(crate) mod records;
pub(crate) mod rights;
pub(crate) mod running;
pub(crate) mod services;
pub(crate) mod shop;
pub(crate) mod terminal;
pub(crate) mod worlds;
