//! Signals and process trees, with programs of every Unix: std offers neither, and `unsafe` is
//! forbidden in this crate.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, path::Path};

use crate::Error;

/// Sends a signal. A process that has already exited is not an error.
pub(crate) fn signal(name: &str, pids: &[u32]) -> Result<(), Error> {
    // The shell's built-in `kill`, because slim images have no other.
    let mut kill = Command::new("sh");
    kill.args(["-c", r#"kill -s "$0" "$@""#, name])
        .args(pids.iter().map(u32::to_string))
        .stderr(Stdio::null());
    kill.status().map(drop).map_err(Error::system("run `sh`"))
}

/// Stops `root` and then its descendants. A stopped process cannot replace them. Returns all of
/// them.
pub(crate) fn freeze_tree(root: u32) -> Result<Vec<u32>, Error> {
    signal("STOP", &[root])?;
    let tree = tree(root);
    signal("STOP", &tree)?;
    Ok(tree)
}

/// Returns `root` and its descendants.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    descend(root, &processes())
}

/// Returns `true` if the process is running.
pub(crate) fn is_running(pid: u32) -> bool {
    processes()
        .iter()
        .any(|process| process.pid == pid && !process.zombie)
}

/// Waits until none of the processes is running. Zombies do not count, because they only wait for
/// their parent to read the exit code.
pub(crate) fn wait_until_gone(pids: &[u32], limit: Duration) {
    let until = Instant::now() + limit;
    while Instant::now() < until
        && processes()
            .iter()
            .any(|process| pids.contains(&process.pid) && !process.zombie)
    {
        sleep(Duration::from_millis(5));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    zombie: bool,
}

fn descend(root: u32, processes: &[Process]) -> Vec<u32> {
    let mut tree = vec![root];
    let mut next = 0;
    while next < tree.len() {
        let parent = tree[next];
        tree.extend(
            processes
                .iter()
                .filter(|process| process.parent == parent)
                .map(|process| process.pid),
        );
        next += 1;
    }
    tree
}

fn processes() -> Vec<Process> {
    if Path::new("/proc/self/stat").exists() {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        return entries
            .filter_map(|entry| stat(&fs::read_to_string(entry.path().join("stat")).ok()?))
            .collect();
    }
    let listed = Command::new("ps")
        .args(["-A", "-o", "pid=,ppid=,stat="])
        .output();
    listed
        .map(|ps| {
            String::from_utf8_lossy(&ps.stdout)
                .lines()
                .filter_map(ps_line)
                .collect()
        })
        .unwrap_or_default()
}

/// Parses a line of `/proc/PID/stat`: `123 (name) S 1 …`. The name may contain spaces and
/// parentheses.
fn stat(line: &str) -> Option<Process> {
    let (head, tail) = line.rsplit_once(')')?;
    let mut tail = tail.split_ascii_whitespace();
    let zombie = matches!(tail.next()?, "Z" | "X");
    Some(Process {
        pid: head.split(' ').next()?.parse().ok()?,
        parent: tail.next()?.parse().ok()?,
        zombie,
    })
}

/// Parses a line of `ps -o pid=,ppid=,stat=`.
fn ps_line(line: &str) -> Option<Process> {
    let mut fields = line.split_ascii_whitespace();
    let (pid, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Process {
        pid,
        parent,
        zombie: fields.next()?.starts_with('Z'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_from_either_list() {
        let process = Process {
            pid: 42,
            parent: 7,
            zombie: false,
        };
        assert_eq!(stat("42 (a) R (b) S 7 42 42 0 -1"), Some(process));
        assert_eq!(
            stat("42 (sh) Z 7 42 42 0 -1"),
            Some(Process {
                zombie: true,
                ..process
            })
        );
        assert_eq!(ps_line("   42     7 S+"), Some(process));
        assert_eq!(stat("nonsense"), None);
    }

    #[test]
    fn a_tree_holds_children_of_children_and_no_stranger() {
        let process = |pid, parent| Process {
            pid,
            parent,
            zombie: false,
        };
        assert_eq!(
            descend(
                2,
                &[
                    process(2, 1),
                    process(5, 4),
                    process(3, 2),
                    process(4, 2),
                    process(9, 1)
                ]
            ),
            [2, 3, 4, 5]
        );
    }
}
