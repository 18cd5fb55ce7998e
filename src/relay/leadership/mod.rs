//! Leadership: one relay of a name leads, and the others stand by.
//!
//! | file | content |
//! |---|---|
//! | `lease` | the advisory lock that the leader holds, and the watch over it |
//! | `holder` | the session that holds the lock, which need not be a relay |
//! | `relay_store` | the relay's row in Postgres: epoch, position copy, pinned topics |

pub(crate) mod holder;
pub(crate) mod lease;
pub(crate) mod relay_store;
