//! One database per test.

use std::thread;

use postgres::{Client, NoTls};

use crate::{Error, Services, names};

/// A database of one test, on the server of [`Services`]. It is dropped with this value.
#[derive(Debug)]
pub struct Database {
    url: String,
    name: String,
    server: String,
}

impl Services {
    /// Creates an empty database. It is dropped with the returned value, together with its sessions
    /// and replication slots.
    ///
    /// The function blocks for some milliseconds. It can be called from asynchronous code.
    ///
    /// # Errors
    ///
    /// Returns an error if the server refuses, for example because the role of `DATABASE_URL` may
    /// not create databases, or if the URL requires TLS, which this function does not support.
    pub fn database(&self) -> Result<Database, Error> {
        let (server, name) = (self.database_url(), names::unique("test"));
        let create = format!("create database \"{name}\"");
        execute(server.clone(), vec![create])?;
        let url = names::with_database(&server, &name);
        Ok(Database { url, name, server })
    }
}

impl Database {
    /// Returns the URL, for example `postgres://postgres@127.0.0.1:17012/tidings_test_…`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

// === impl Drop ===

impl Drop for Database {
    fn drop(&mut self) {
        let name = &self.name;
        // A slot would prevent the drop of its database.
        let slots = format!(
            "select pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name) \
             from pg_replication_slots where database = '{name}'"
        );
        let drop = format!("drop database if exists \"{name}\" with (force)");
        // A database that cannot be dropped does not fail the test that has ended.
        let _ = execute(self.server.clone(), vec![slots]);
        let _ = execute(self.server.clone(), vec![drop]);
    }
}

/// Executes statements in one session, on a thread of its own, because the client blocks in a way
/// that a runtime refuses.
fn execute(url: String, statements: Vec<String>) -> Result<(), Error> {
    let executing = thread::spawn(move || {
        let mut client = Client::connect(&url, NoTls)?;
        statements
            .iter()
            .try_for_each(|statement| client.batch_execute(statement))
    });
    let executed = executing.join().expect("the client does not panic");
    executed.map_err(|error| {
        let failed = Error::system("prepare the database of a test");
        failed(std::io::Error::other(error))
    })
}
