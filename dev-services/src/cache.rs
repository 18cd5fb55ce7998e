//! Cache of downloaded and computed files. An entry is either complete or missing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{env, fs};

use crate::{Error, process};

/// Returns `TIDINGS_CACHE`, or the default location. The default of root is outside of root's home,
/// because the user that runs Postgres must be able to read it.
fn folder() -> PathBuf {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
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
    set("XDG_CACHE_HOME")
        .unwrap_or_else(|| home.join(".cache"))
        .join("tidings")
}

/// Returns the entry `name` of the cache. If it is missing, `make` creates it.
///
/// `make` fills a path that belongs to this process, which is then renamed. Two processes may
/// therefore create the same entry: one of them wins. A killed process leaves no incomplete entry.
pub(crate) fn entry(
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    entry_of(&folder(), name, make)
}

fn entry_of(
    folder: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    static PARTS: AtomicU32 = AtomicU32::new(0);
    /// Serializes the threads of this process, which create the same entries and would remove each
    /// other's parts as abandoned.
    static MAKING: Mutex<()> = Mutex::new(());

    let whole = folder.join(name);
    if whole.exists() {
        return Ok(whole);
    }
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if whole.exists() {
        return Ok(whole);
    }
    fs::create_dir_all(folder).map_err(Error::system(format!(
        "create the cache {} (set TIDINGS_CACHE to another folder)",
        folder.display()
    )))?;
    let number = PARTS.fetch_add(1, Ordering::Relaxed);
    let part = folder.join(format!("{name}.part-{}-{number}", std::process::id()));
    remove_abandoned(folder, name);
    let made = make(&part).and_then(|()| match fs::rename(&part, &whole) {
        Err(_) if whole.exists() => Ok(()),
        renamed => renamed.map_err(Error::system(format!(
            "move {} to {}",
            part.display(),
            whole.display()
        ))),
    });
    let _ = remove(&part);
    made.map(|()| whole)
}

/// Removes the parts of killed processes.
fn remove_abandoned(folder: &Path, name: &str) {
    for file in fs::read_dir(folder).into_iter().flatten().flatten() {
        let file_name = file.file_name();
        let owner = file_name.to_str().and_then(|file| part_of(file, name));
        if owner.is_some_and(|owner| owner == std::process::id() || !process::is_running(owner)) {
            let _ = remove(&file.path());
        }
    }
}

/// Returns the process id in the name of a part of the entry `name`.
fn part_of(file: &str, name: &str) -> Option<u32> {
    file.strip_prefix(name)?
        .strip_prefix(".part-")?
        .split_once('-')?
        .0
        .parse()
        .ok()
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_names_its_process_and_its_entry() {
        assert_eq!(part_of("kafka-4.3.1.part-77-0", "kafka-4.3.1"), Some(77));
        assert_eq!(part_of("kafka-4.3.1", "kafka-4.3.1"), None);
        assert_eq!(
            part_of("kafka-4.3.1-java-17.jsa.part-77-0", "kafka-4.3.1"),
            None
        );
    }

    #[test]
    fn threads_that_want_the_same_entry_make_it_once() {
        let (folder, made) = (
            env::temp_dir().join(format!("tidings-entries-{}", std::process::id())),
            AtomicU32::new(0),
        );
        let make = |part: &Path| {
            made.fetch_add(1, Ordering::Relaxed);
            fs::create_dir_all(part).map_err(Error::system("make a part"))?;
            std::thread::sleep(std::time::Duration::from_millis(50));
            fs::write(part.join("jar"), "").map_err(Error::system("write into a part"))
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| entry_of(&folder, "jars", make)))
                .collect();
            for one in all {
                assert!(
                    one.join()
                        .expect("no panic")
                        .expect("the entry is created")
                        .join("jar")
                        .exists()
                );
            }
        });
        fs::remove_dir_all(&folder).expect("the temporary folder can be written");
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn only_parts_of_dead_processes_are_removed() {
        let folder = env::temp_dir().join(format!("tidings-parts-{}", std::process::id()));
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read _"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("sh runs");
        let (alive, dead) = (
            folder.join(format!("jars.part-{}-0", child.id())),
            folder.join("jars.part-4000000000-0"),
        );
        for folder in [&alive, &dead] {
            fs::create_dir_all(folder).expect("the temporary folder can be written");
        }
        remove_abandoned(&folder, "jars");
        let left = (alive.exists(), dead.exists());
        drop(child.stdin.take());
        child.wait().expect("sh ends");
        fs::remove_dir_all(&folder).expect("the temporary folder can be written");
        assert_eq!(left, (true, false));
    }
}
