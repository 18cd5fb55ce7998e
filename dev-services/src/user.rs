//! The user that runs the servers. Postgres refuses to run as root.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::programs;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// Returns the user to switch to, or `None` to keep the current one.
    pub(crate) fn to_become() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        // 65534 is `nobody` on systems without this file.
        Some(Self::unprivileged(&passwd).unwrap_or(Self {
            uid: 65534,
            gid: 65534,
        }))
    }

    fn unprivileged(passwd: &str) -> Option<Self> {
        let named = |name: &str| {
            passwd.lines().find_map(|line| {
                let mut fields = line.split(':');
                (fields.next()? == name).then_some(())?;
                Some(Self {
                    uid: fields.nth(1)?.parse().ok()?,
                    gid: fields.next()?.parse().ok()?,
                })
            })
        };
        named("postgres").or_else(|| named("nobody"))
    }
}

/// Returns `true` for root. std does not provide `getuid`.
pub(crate) fn is_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    *ROOT.get_or_init(|| {
        programs::ask(Path::new("id"), &["-u"]).is_some_and(|uid| uid.trim() == "0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_becomes_postgres_or_else_nobody() {
        let nobody = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533:nobody:/:/bin/false\n";
        assert_eq!(
            User::unprivileged(nobody),
            Some(User {
                uid: 65534,
                gid: 65533
            })
        );
        let both = format!("{nobody}postgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n");
        assert_eq!(User::unprivileged(&both), Some(User { uid: 101, gid: 104 }));
        assert_eq!(User::unprivileged("root:x:0:0\nbroken"), None);
    }
}
