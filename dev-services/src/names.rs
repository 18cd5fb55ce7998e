//! Names that no other test uses, and the parts of addresses.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Number of the names of this process.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Returns a name that starts with `tidings_` and `kind`. Time, process and number make it unique.
pub(crate) fn unique(kind: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let micros = now.map_or(0, |since| since.as_micros());
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("tidings_{kind}_{micros:x}_{:x}_{number:x}", process::id())
}

/// Returns the URL with another database.
#[cfg(feature = "databases")]
pub(crate) fn with_database(url: &str, database: &str) -> String {
    let (base, parameters) = match url.split_once('?') {
        Some((base, parameters)) => (base, format!("?{parameters}")),
        None => (url, String::new()),
    };
    let after_scheme = base.find("://").map_or(0, |at| at + 3);
    let server = match base[after_scheme..].find('/') {
        Some(at) => &base[..after_scheme + at],
        None => base,
    };
    format!("{server}/{database}{parameters}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_names_are_equal() {
        let names = [unique("a"), unique("a"), unique("b")];
        assert!(names[0] != names[1] && names[2].starts_with("tidings_b_"));
        // A database's name has at most 63 bytes.
        assert!(names.iter().all(|name| name.len() <= 63), "{names:?}");
    }

    #[cfg(feature = "databases")]
    #[test]
    fn the_database_of_a_url_is_replaced_and_its_parameters_stay() {
        for (url, with) in [
            ("postgres://a:b@h:1/x", "postgres://a:b@h:1/new"),
            ("postgres://h", "postgres://h/new"),
            ("postgres://h/x?a=/b", "postgres://h/new?a=/b"),
            ("postgres:///x?host=/run", "postgres:///new?host=/run"),
        ] {
            assert_eq!(with_database(url, "new"), with, "{url}");
        }
    }
}
