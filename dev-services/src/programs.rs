//! Installed programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Returns the folders that match `pattern`, the newest version first. The single `*` matches (a
/// part of) a name.
pub(crate) fn folders(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        return Some(PathBuf::from(pattern))
            .filter(|folder| folder.is_dir())
            .into_iter()
            .collect();
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or((".", before));
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort_by_key(|name| std::cmp::Reverse((version(&name[prefix.len()..]), name.clone())));
    names
        .into_iter()
        .map(|name| PathBuf::from(format!("{parent}/{name}{after}")))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// Returns the folders of PATH.
pub(crate) fn path() -> Vec<PathBuf> {
    env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect())
        .unwrap_or_default()
}

/// Returns `true` if a folder of PATH contains `program`.
pub(crate) fn is_installed(program: &str) -> bool {
    path().iter().any(|folder| folder.join(program).is_file())
}

/// Runs the program and returns its output on both streams, or `None` if it fails.
pub(crate) fn ask(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Returns the first version number in a text: `[15, 18]` for
/// `postgres (PostgreSQL) 15.18 (Debian …)`.
pub(crate) fn version(text: &str) -> Vec<u32> {
    let Some(start) = text.find(|c: char| c.is_ascii_digit()) else {
        return Vec::new();
    };
    let text = &text[start..];
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    text[..end]
        .split('.')
        .map_while(|part| part.parse().ok())
        .collect()
}

/// Formats `[15, 18]` as `15.18`.
pub(crate) fn dotted(version: &[u32]) -> String {
    version
        .iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_number_of_what_a_program_says() {
        assert_eq!(
            version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"),
            [15, 18]
        );
        assert_eq!(version("postgres (PostgreSQL) 18beta1"), [18]);
        assert_eq!(
            version("openjdk version \"17.0.15\" 2025-04-15"),
            [17, 0, 15]
        );
        assert_eq!(version("JAVA_VERSION=\"25\""), [25]);
        assert_eq!(version("none"), [0u32; 0]);
        assert_eq!(dotted(&[15, 18]), "15.18");
    }

    #[test]
    fn the_newest_folder_is_the_first_and_numbers_are_compared_as_numbers() {
        let root = env::temp_dir().join(format!("tidings-folders-{}", std::process::id()));
        for name in ["pg9/bin", "pg18/bin", "pg10/bin", "pg20", "other/bin"] {
            fs::create_dir_all(root.join(name)).expect("the temporary folder can be written");
        }
        let found = folders(&format!("{}/pg*/bin", root.display()));
        fs::remove_dir_all(&root).expect("the temporary folder can be written");
        assert_eq!(
            found,
            [
                root.join("pg18/bin"),
                root.join("pg10/bin"),
                root.join("pg9/bin")
            ]
        );
    }
}
