//! A standby server that follows a primary and can take over.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Error;
use crate::keeper::{Keeper, LOOK, new_folder};
use crate::port::free_port;
use crate::user::User;

use super::session::ask;
use super::{Postgres, SERVICE};

/// Time limit for a standby. It replays within milliseconds, and synchronizes a slot every few
/// seconds.
const FOLLOW_LIMIT: Duration = Duration::from_secs(60);

/// The first version that can keep a logical slot on a standby.
const FAILOVER_SLOTS: u32 = 17;

/// Copies the data of a stopped server and becomes its standby. The slots are not copied.
const RUN: &str = r#"
data=$1/data new=$1/new
if [ ! -d "$data" ]; then
  rm -rf "$new" && cp -R "$4" "$new" && chmod 700 "$new" && rm -rf "$new"/pg_replslot/* || exit 1
  printf '%s\n' "$3" >>"$new/postgresql.conf" && : >"$new/standby.signal" \
    && mv "$new" "$data" || exit 1
fi
exec "$2/postgres" -D "$data"
"#;

impl Postgres {
    /// The physical slot through which a standby streams, for `synchronized_standby_slots`.
    pub const STANDBY_SLOT: &str = "standby";

    /// Creates a streaming standby of this server. Returns when it follows.
    ///
    /// The server is restarted, because the standby starts as a copy of the data of a stopped
    /// server. From Postgres 17 on, the standby also synchronizes logical slots that were created
    /// with `FAILOVER`. A server has one standby; a promoted standby can have its own.
    ///
    /// # Errors
    ///
    /// Returns an error if either server is not ready within a minute.
    pub fn standby(&mut self) -> Result<Self, Error> {
        let name = Self::STANDBY_SLOT;
        // The slot exists before the standby: a synchronized slot must not be ahead of the WAL that
        // the primary keeps for the standby.
        let create = format!(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                where slot_name = '{name}';
             select pg_create_physical_replication_slot('{name}', true)"
        );
        ask(self.port, &create)?;
        self.stop()?;
        let mut standby = self.copy()?;
        // The copy must be complete before the primary starts again.
        standby.keeper.start(SERVICE)?;
        let until = Instant::now() + FOLLOW_LIMIT;
        while !standby.data_folder().exists() {
            standby.keeper.still_starting(SERVICE, until)?;
            std::thread::sleep(LOOK);
        }
        self.start_again()?;
        while !standby.answers() {
            standby.keeper.still_starting(SERVICE, until)?;
            std::thread::sleep(LOOK);
        }
        standby.wait_until_streaming(true)?;
        Ok(standby)
    }

    fn copy(&self) -> Result<Self, Error> {
        let (user, port) = (User::to_become(), free_port());
        let folder = new_folder("postgres");
        let mut command: Vec<OsString> = ["sh", "-c", RUN, "postgres"].map(OsString::from).into();
        command.extend([
            folder.as_os_str().to_owned(),
            self.bin.as_os_str().to_owned(),
        ]);
        command.extend([
            self.standby_settings(port, &folder).into(),
            self.data_folder().into_os_string(),
        ]);
        let keeper = Keeper::new(folder, user, "QUIT", 10, command)?;
        Ok(Self {
            keeper,
            port,
            socket: self.socket,
            bin: self.bin.clone(),
            version: self.version,
            description: self.description.clone(),
        })
    }

    /// Returns the settings of the standby. They are appended to those of the primary and override
    /// them.
    fn standby_settings(&self, port: u16, folder: &Path) -> String {
        let (name, primary, failover) = (
            Self::STANDBY_SLOT,
            self.port,
            self.version >= FAILOVER_SLOTS,
        );
        let sockets = if self.socket {
            super::quoted(&folder.to_string_lossy())
        } else {
            "''".to_owned()
        };
        let synchronize = if failover {
            "sync_replication_slots = on\n"
        } else {
            ""
        };
        format!(
            "port = {port}\nunix_socket_directories = {sockets}\nprimary_slot_name = '{name}'\n\
             hot_standby_feedback = on\n\
             primary_conninfo = 'host=127.0.0.1 port={primary} user=postgres dbname=postgres'\n\
             wal_receiver_status_interval = '1s'\nwal_retrieve_retry_interval = '200ms'\n\
             {synchronize}"
        )
    }

    /// Promotes the standby to a primary with the data that it has received. Kill the old primary
    /// first, unless the test needs two primaries.
    ///
    /// # Errors
    ///
    /// Returns an error if this is not a standby, or if it does not accept writes within a minute.
    pub fn promote(&mut self) -> Result<(), Error> {
        let promoted = ask(self.port, "select pg_promote(true, 60)")?;
        // A standby of this server would start with a copy of these settings.
        ask(self.port, "alter system reset primary_conninfo")?;
        // Otherwise the new primary would wait for the slot of the former primary's standby, which
        // is itself.
        if self.version >= FAILOVER_SLOTS {
            ask(
                self.port,
                "alter system set synchronized_standby_slots = ''",
            )?;
            ask(self.port, "select pg_reload_conf()")?;
        }
        match promoted.as_deref() {
            Some("t") => Ok(()),
            _ => Err(self.refusal("it was not promoted within 60 s")),
        }
    }

    /// Stops streaming. The standby does not receive later commits of the primary, which are lost
    /// if it is promoted.
    ///
    /// # Errors
    ///
    /// Returns an error if this is not a standby, or if it does not respond.
    pub fn hold_back(&mut self) -> Result<(), Error> {
        ask(self.port, "alter system set primary_conninfo = ''")?;
        ask(self.port, "select pg_reload_conf()")?;
        self.wait_until_streaming(false)
    }

    /// Resumes after [`hold_back`](Self::hold_back). Returns when the standby streams again.
    ///
    /// # Errors
    ///
    /// Returns an error if it does not stream within a minute.
    pub fn let_follow(&mut self) -> Result<(), Error> {
        ask(self.port, "alter system reset primary_conninfo")?;
        ask(self.port, "select pg_reload_conf()")?;
        self.wait_until_streaming(true)
    }

    /// Waits until this standby has replayed everything that `primary` has committed so far.
    ///
    /// # Errors
    ///
    /// Returns an error after a minute, or if either server does not respond.
    pub fn catch_up_with(&self, primary: &Self) -> Result<(), Error> {
        let target = ask(primary.port, "select pg_current_wal_flush_lsn()")?.unwrap_or_default();
        self.wait_for(
            &format!("select pg_last_wal_replay_lsn() >= '{target}'::pg_lsn"),
            "it does not catch up with its primary",
        )
    }

    /// Waits until this standby has synchronized a logical slot of `primary`, so that readers could
    /// continue from it after a promotion. Requires Postgres 17.
    ///
    /// A slot is synchronized once everything that it needs is available on the standby. A slot
    /// that was created before the standby must therefore be read and confirmed meanwhile.
    ///
    /// # Errors
    ///
    /// Returns an error if it is not synchronized within a minute.
    pub fn wait_for_slot(&self, primary: &Self, slot: &str) -> Result<(), Error> {
        let slot = super::quoted(slot);
        // A slot is temporary until it is synchronized for the first time.
        let kept = format!(
            "select coalesce(bool_or(synced and not temporary), false)
             from pg_replication_slots where slot_name like {slot}"
        );
        let until = Instant::now() + FOLLOW_LIMIT;
        while ask(self.port, &kept)?.as_deref() != Some("t") {
            if Instant::now() > until {
                return Err(self.refusal("it does not synchronize the slot"));
            }
            // A slot releases old transactions when its reader passes such a record. By default,
            // the server writes one every 15 s.
            ask(primary.port, "select pg_log_standby_snapshot()")?;
            std::thread::sleep(40 * LOOK);
        }
        Ok(())
    }

    fn wait_until_streaming(&self, streaming: bool) -> Result<(), Error> {
        let receiver = "coalesce((select status = 'streaming' from pg_stat_wal_receiver), false)";
        self.wait_for(
            &format!("select {receiver} = {streaming}"),
            "its WAL receiver is not in the expected state",
        )
    }

    fn wait_for(&self, holds: &str, otherwise: &str) -> Result<(), Error> {
        let until = Instant::now() + FOLLOW_LIMIT;
        while ask(self.port, holds)?.as_deref() != Some("t") {
            if Instant::now() > until {
                return Err(self.refusal(otherwise));
            }
            std::thread::sleep(4 * LOOK);
        }
        Ok(())
    }

    fn refusal(&self, reason: &str) -> Error {
        Error::Start {
            service: "Postgres standby",
            reason: reason.to_owned(),
            log: self.log_end(),
        }
    }
}
