//! What is downloaded or computed once: a folder that is either complete or not there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs};

use crate::Error;

/// `TIDINGS_CACHE`, or the customary place. Root's is outside root's home: the user that Postgres runs as must read it.
fn folder() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("TIDINGS_CACHE") {
        return folder;
    }
    let home = set("HOME").unwrap_or_else(env::temp_dir);
    if crate::user::is_root() && Path::new("/var/cache").is_dir() {
        return PathBuf::from("/var/cache/tidings");
    }
    if cfg!(target_os = "macos") {
        return home.join("Library/Caches/tidings");
    }
    set("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("tidings")
}

/// The entry `name` of the cache, made by `make` if it is not there. `make` fills a path of its own process, which is then renamed:
/// two processes with an empty cache both work, one of them wins, and a process that is killed leaves nothing half done behind.
pub(crate) fn entry(name: &str, make: impl FnOnce(&Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
    static PARTS: AtomicU32 = AtomicU32::new(0);

    let whole = folder().join(name);
    if whole.exists() {
        return Ok(whole);
    }
    fs::create_dir_all(folder())
        .map_err(Error::system(format!("create the cache {} (set TIDINGS_CACHE to another folder)", folder().display())))?;
    let number = PARTS.fetch_add(1, Ordering::Relaxed);
    let part = folder().join(format!("{name}.part-{}-{number}", std::process::id()));
    let _ = remove(&part);
    let made = make(&part).and_then(|()| match fs::rename(&part, &whole) {
        Err(_) if whole.exists() => Ok(()),
        renamed => renamed.map_err(Error::system(format!("move {} to {}", part.display(), whole.display()))),
    });
    let _ = remove(&part);
    made.map(|()| whole)
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}
