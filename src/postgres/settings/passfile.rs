//! Password file (PostgreSQL manual, "The Password File"): lines
//! `host:port:database:user:password`. Pure, except for reading the file.

use std::path::Path;

use super::fault::UrlFault;

/// Maximum size of the file. A password file has a few lines.
const BYTES_MAX: u64 = 1024 * 1024;

/// The values that a line must match.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// The host, or `localhost` for a Unix socket.
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// Returns the password for these values. Returns `None` if no line matches or the file does not
/// exist.
///
/// # Errors
///
/// Returns an error if other accounts may access the file. libpq does not use such a file either.
pub(super) fn lookup(file: &Path, wanted: Wanted<'_>) -> Result<Option<String>, UrlFault> {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(metadata) = std::fs::metadata(file) else {
        return Ok(None);
    };
    if !metadata.is_file() || metadata.len() > BYTES_MAX {
        return Ok(None);
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(UrlFault::Passfile {
            file: file.display().to_string(),
        });
    }
    Ok(std::fs::read_to_string(file)
        .ok()
        .and_then(|text| find(&text, wanted)))
}

fn find(text: &str, wanted: Wanted<'_>) -> Option<String> {
    let port = wanted.port.to_string();
    let expected = [wanted.host, &port, wanted.database, wanted.user];
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let mut fields = fields(line);
            let password = (fields.len() >= 5).then(|| fields.swap_remove(4))?;
            let matches = expected
                .iter()
                .zip(&fields)
                .all(|(expected, field)| field == "*" || field == expected);
            (matches && !password.is_empty()).then_some(password)
        })
}

/// Splits a line at `:`. A backslash escapes the next character. The password ends at the next `:`
/// too.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (character, fields.last_mut()) {
            (':', _) => fields.push(String::new()),
            ('\\', Some(field)) => field.extend(characters.next()),
            (other, Some(field)) => field.push(other),
            (_, None) => {}
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_matches_counts() {
        let file = "# comment\n\
                    db:5432:shop:ann:first\n\
                    db:*:*:ann:second\n\
                    \\:\\:1:5432:*:*:six\\:\\\\\n\
                    broken\n\
                    *:*:*:bob:\n\
                    *:*:*:*:last";
        for (host, port, database, user, password) in [
            ("db", 5432, "shop", "ann", "first"),
            ("db", 6432, "shop", "ann", "second"),
            ("::1", 5432, "x", "y", "six:\\"),
            ("other", 1, "x", "bob", "last"),
        ] {
            assert_eq!(
                find(
                    file,
                    Wanted {
                        host,
                        port,
                        database,
                        user
                    }
                )
                .as_deref(),
                Some(password),
                "{host} {port}"
            );
        }
        assert_eq!(
            find(
                "db:5432:shop:ann:x",
                Wanted {
                    host: "db",
                    port: 1,
                    database: "shop",
                    user: "ann"
                }
            ),
            None
        );
    }
}
