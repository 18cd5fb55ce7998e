//! Who the servers run as. Postgres refuses to run as root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// The user to become: `None` stays who we are.
    pub(crate) fn to_become() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        // 65534 is `nobody` wherever there is no list to ask.
        Some(Self::unprivileged(&passwd).unwrap_or(Self { uid: 65534, gid: 65534 }))
    }

    fn unprivileged(passwd: &str) -> Option<Self> {
        let named = |name: &str| {
            passwd.lines().find_map(|line| {
                let mut fields = line.split(':');
                (fields.next()? == name).then_some(())?;
                Some(Self { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
            })
        };
        named("postgres").or_else(|| named("nobody"))
    }
}

/// The owner of a file that we create: std has no `getuid`.
pub(crate) fn is_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    static PROBES: AtomicU32 = AtomicU32::new(0);
    *ROOT.get_or_init(|| {
        let number = PROBES.fetch_add(1, Ordering::Relaxed);
        let probe = std::env::temp_dir().join(format!("tidings-user-{}-{number}", std::process::id()));
        let owner = fs::write(&probe, "").and_then(|()| fs::metadata(&probe)).map(|file| file.uid());
        let _ = fs::remove_file(&probe);
        owner.is_ok_and(|uid| uid == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_becomes_postgres_or_else_nobody() {
        let nobody = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533:nobody:/:/bin/false\n";
        assert_eq!(User::unprivileged(nobody), Some(User { uid: 65534, gid: 65533 }));
        let both = format!("{nobody}postgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n");
        assert_eq!(User::unprivileged(&both), Some(User { uid: 101, gid: 104 }));
        assert_eq!(User::unprivileged("root:x:0:0\nbroken"), None);
    }
}
