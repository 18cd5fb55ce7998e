//! `init`, `config schema`, `completions` and `man`, and a secret of Kafka in a file.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{against, ended, tidings};
use crate::support::services::{brokers, migrated_database};

/// A folder that is removed at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tidings-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_written_configuration_runs_a_command_and_is_never_overwritten() {
    let database = migrated_database().await;
    let folder = Folder::new();
    let file = folder.path("tidings.toml");
    let (code, text, _) = ended(tidings(&["init", &file]));
    assert!(
        code == 0 && text.contains("tidings check --config"),
        "{text}"
    );
    let written = std::fs::read_to_string(&file).expect("the file exists");
    let (code, printed, _) = ended(tidings(&["init", "-"]));
    assert_eq!((code, &printed), (0, &written));
    let (code, _, error) = ended(tidings(&["init", &file]));
    assert!(
        code == 3 && error.contains("exists and was not changed"),
        "{error}"
    );

    let settings = written
        .replace(
            "[database]",
            &format!("[database]\nurl = {:?}", database.url),
        )
        .replace("[kafka]", &format!("[kafka]\nbrokers = {:?}", brokers()));
    std::fs::write(&file, settings).expect("the file can be edited");
    let (code, text, error) = ended(tidings(&["check", "--config", &file]));
    assert!(code == 0, "{text} {error}");
}

#[test]
fn the_schema_is_json_and_needs_no_configuration() {
    let (code, text, _) = ended(tidings(&["config", "schema"]));
    let schema: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(code, 0);
    assert_eq!(
        schema["properties"]["log"]["properties"]["format"]["default"],
        "human"
    );
}

#[test]
fn a_shell_accepts_its_completions() {
    let folder = Folder::new();
    let (code, script, _) = ended(tidings(&["completions", "bash"]));
    assert_eq!(code, 0);
    let file = folder.path("tidings.bash");
    std::fs::write(&file, script).expect("the script can be written");
    let mut bash = Command::new("bash");
    // Completes the second word of `tidings dead-le`.
    bash.args(["--norc", "-c"]).arg(format!(
        "source {file}; COMP_WORDS=(tidings dead-le); COMP_CWORD=1; \
         _tidings tidings dead-le tidings; echo \"${{COMPREPLY[@]}}\""
    ));
    bash.stdin(Stdio::null());
    assert_eq!(ended(bash), (0, "dead-letters\n".into(), String::new()));
}

#[test]
fn a_manual_page_is_printed_for_each_command() {
    let (code, page, _) = ended(tidings(&["man", "relay", "rewind"]));
    assert!(
        code == 0 && page.contains("to\\-mirror") && page.contains("SYNOPSIS"),
        "{page}"
    );
    let (code, _, error) = ended(tidings(&["man", "relay", "nothing"]));
    assert!(code == 2 && error.contains("is not a command"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_kafka_is_read_from_the_file_that_a_property_names() {
    let database = migrated_database().await;
    let folder = Folder::new();
    let (file, secret) = (folder.path("tidings.toml"), folder.path("password"));
    std::fs::write(&secret, "hunter2\n").expect("the secret can be written");
    let settings = format!("[kafka.properties]\nsasl.password_file = {secret:?}\n");
    std::fs::write(&file, settings).expect("the file can be written");
    let (code, text, error) = ended(against(&database, &["check", "--json", "--config", &file]));
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let entries = report["configuration"].as_array().expect("the settings");
    let password = entries
        .iter()
        .find(|entry| entry["key"] == "kafka.properties.sasl.password")
        .unwrap_or_else(|| panic!("{code} {error}: {text}"));
    assert!(
        !text.contains("hunter2")
            && password["from"]
                .as_str()
                .is_some_and(|from| from.contains("tidings.toml")),
        "{text}"
    );
    std::fs::remove_file(&secret).expect("the secret can be removed");
    let (code, _, error) = ended(against(&database, &["check", "--config", &file]));
    assert!(
        code == 2 && error.contains("cannot be read from the file"),
        "{error}"
    );
}
