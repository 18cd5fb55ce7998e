//! A second server that follows the first and can take over.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Error;
use crate::keeper::{Keeper, LOOK, new_folder};
use crate::port::free_port;
use crate::user::User;

use super::session::ask;
use super::{Postgres, SERVICE};

/// What a standby is waited for: it replays in milliseconds, and a slot is synchronized every few seconds.
const FOLLOW_LIMIT: Duration = Duration::from_secs(60);

/// The first version that can keep a logical slot on a standby.
const FAILOVER_SLOTS: u32 = 17;

/// Copies the data of a server that is stopped, and becomes a standby of it. Slots are the first server's own.
const RUN: &str = r#"
data=$1/data new=$1/new
if [ ! -d "$data" ]; then
  rm -rf "$new" && cp -R "$4" "$new" && chmod 700 "$new" && rm -rf "$new"/pg_replslot/* || exit 1
  printf '%s\n' "$3" >>"$new/postgresql.conf" && : >"$new/standby.signal" && mv "$new" "$data" || exit 1
fi
exec "$2/postgres" -D "$data"
"#;

impl Postgres {
    /// The physical slot through which a standby streams: the name for `synchronized_standby_slots`.
    pub const STANDBY_SLOT: &str = "standby";

    /// Makes a streaming standby of this server and returns once it follows. The server restarts for it: a standby begins as a copy of
    /// the data of a server that is stopped.
    ///
    /// From Postgres 17 the standby also keeps logical slots that were created with `FAILOVER`. A server has one standby; when it has
    /// been promoted, it can be given a standby in turn.
    ///
    /// # Errors
    /// When either server does not do its part within a minute.
    pub fn standby(&mut self) -> Result<Self, Error> {
        let name = Self::STANDBY_SLOT;
        // Before the standby exists: a slot that is synchronized must not be ahead of what the primary keeps for it.
        let create = format!(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{name}';
             select pg_create_physical_replication_slot('{name}', true)"
        );
        ask(self.port, &create)?;
        self.stop()?;
        let mut standby = self.copy()?;
        // Copied before the server goes on.
        standby.keeper.start(SERVICE)?;
        let until = Instant::now() + FOLLOW_LIMIT;
        while !standby.data_folder().exists() {
            standby.keeper.still_starting(SERVICE, until)?;
            std::thread::sleep(LOOK);
        }
        self.start_again()?;
        let port = standby.port;
        while !super::probe::answers(port) {
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

    /// Behind the first server's own settings, so that they win.
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
            "port = {port}\nunix_socket_directories = {sockets}\nprimary_slot_name = '{name}'\nhot_standby_feedback = on\n\
             primary_conninfo = 'host=127.0.0.1 port={primary} user=postgres dbname=postgres'\n\
             wal_receiver_status_interval = '1s'\nwal_retrieve_retry_interval = '200ms'\n{synchronize}"
        )
    }

    /// Ends the standby's dependence: it becomes a primary with what it has received. Kill the old primary before, unless two primaries
    /// are what is to be tested.
    ///
    /// # Errors
    /// When this is no standby, or does not accept writes within a minute.
    pub fn promote(&mut self) -> Result<(), Error> {
        let promoted = ask(self.port, "select pg_promote(true, 60)")?;
        // A standby of its own starts with a copy of these settings.
        ask(self.port, "alter system reset primary_conninfo")?;
        // It waits for itself no more: `synchronized_standby_slots` was for the standby of the server that is gone.
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

    /// Stops streaming: what the primary commits from here on this standby does not have, and is lost if it is promoted.
    ///
    /// # Errors
    /// When this is no standby that can be asked.
    pub fn hold_back(&mut self) -> Result<(), Error> {
        ask(self.port, "alter system set primary_conninfo = ''")?;
        ask(self.port, "select pg_reload_conf()")?;
        self.wait_until_streaming(false)
    }

    /// Ends a [`hold_back`](Self::hold_back); returns once it streams again.
    ///
    /// # Errors
    /// When it does not.
    pub fn let_follow(&mut self) -> Result<(), Error> {
        ask(self.port, "alter system reset primary_conninfo")?;
        ask(self.port, "select pg_reload_conf()")?;
        self.wait_until_streaming(true)
    }

    /// Waits until this standby has replayed all that `primary` has committed by now.
    ///
    /// # Errors
    /// When it does not within a minute, or either cannot be asked.
    pub fn catch_up_with(&self, primary: &Self) -> Result<(), Error> {
        let target = ask(primary.port, "select pg_current_wal_flush_lsn()")?.unwrap_or_default();
        self.wait_for(
            &format!("select pg_last_wal_replay_lsn() >= '{target}'::pg_lsn"),
            "it does not catch up with its primary",
        )
    }

    /// Waits until this standby keeps a logical slot of `primary` that it could go on with. Postgres 17 and newer.
    ///
    /// A slot is kept once what it still needs is no older than what the standby has. So one that was made before the standby has to be
    /// read from meanwhile.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub fn wait_for_slot(&self, primary: &Self, slot: &str) -> Result<(), Error> {
        let slot = super::quoted(slot);
        // Temporary until it is synchronized for the first time.
        let kept = format!(
            "select coalesce(bool_or(synced and not temporary), false) from pg_replication_slots where slot_name like {slot}"
        );
        let until = Instant::now() + FOLLOW_LIMIT;
        while ask(self.port, &kept)?.as_deref() != Some("t") {
            if Instant::now() > until {
                return Err(self.refusal("it does not synchronize the slot"));
            }
            // A slot forgets old transactions when its reader comes by such a record, which is otherwise written every 15 s.
            ask(primary.port, "select pg_log_standby_snapshot()")?;
            std::thread::sleep(40 * LOOK);
        }
        Ok(())
    }

    fn wait_until_streaming(&self, streaming: bool) -> Result<(), Error> {
        let receiver = "coalesce((select status = 'streaming' from pg_stat_wal_receiver), false)";
        self.wait_for(
            &format!("select {receiver} = {streaming}"),
            "its WAL receiver does not do as it is told",
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
