//! Real clients of other languages: their libraries are installed once, in the versions that the
//! files beside this one name.
//!
//! What is installed stays in the build's folder for temporary files (Python, JavaScript) or in the
//! cache of `dev-services` (Java).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use dev_services::java;

use crate::support::services::skipped;

/// Time for a producer to send its records and end.
const PRODUCER_LIMIT: Duration = Duration::from_secs(120);

/// A program that sends records, without its arguments.
pub(super) struct Producer(Vec<PathBuf>);

impl Producer {
    /// Sends the program's records.
    ///
    /// # Panics
    /// If the program fails or does not end.
    pub(super) async fn send(&self, arguments: &[&str]) {
        let [program, leading @ ..] = &self.0[..] else {
            panic!("a producer is a program")
        };
        let mut command = tokio::process::Command::new(program);
        command
            .args(leading)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let ended = tokio::time::timeout(PRODUCER_LIMIT, command.output()).await;
        let output = ended
            .unwrap_or_else(|_| panic!("{program:?} does not end"))
            .unwrap_or_else(|error| panic!("{program:?}: {error}"));
        assert!(output.status.success(), "{program:?}: {}", text(&output));
    }
}

/// Everything that a program wrote.
fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn source(file: &str) -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "tests/it/subscriber/foreign",
        file,
    ]
    .iter()
    .collect()
}

/// Runs a program to its end. Returns its last line of output, or the system's error, if it fails.
fn run(program: impl AsRef<OsStr>, arguments: &[&OsStr]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let last = || {
        text(&output)
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or_default()
            .to_owned()
    };
    if output.status.success() {
        Ok(())
    } else {
        Err(last())
    }
}

/// A folder with the libraries of one language. `install` fills it, and is called again if the
/// files that name the versions change.
///
/// # Errors
/// What `install` reports.
fn installed(
    language: &str,
    versions: &[&str],
    install: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let folder: PathBuf = [env!("CARGO_TARGET_TMPDIR"), &format!("foreign-{language}")]
        .iter()
        .collect();
    let (mark, wanted) = (folder.join("installed"), versions.concat());
    let system = |error: std::io::Error| format!("{}: {error}", folder.display());
    // Two runs of the tests install one after the other.
    let lock = File::create(folder.with_extension("lock")).map_err(system)?;
    lock.lock().map_err(system)?;
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(folder);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(system)?;
    }
    fs::create_dir_all(&folder).map_err(system)?;
    install(&folder)?;
    fs::write(mark, wanted).map_err(system)?;
    Ok(folder)
}

/// The producer of this language, or a line that names the remedy.
async fn prepared(
    language: &'static str,
    packages: &str,
    prepare: impl FnOnce() -> Result<Vec<PathBuf>, String> + Send + 'static,
) -> Option<Producer> {
    match tokio::task::spawn_blocking(prepare)
        .await
        .expect("no panic")
    {
        Ok(command) => Some(Producer(command)),
        Err(reason) => {
            let what = format!("records of clients in {language} are not tested ({reason})");
            skipped(
                &what,
                &format!(
                    "on Debian, `apt-get install {packages}`; the libraries are downloaded once"
                ),
            );
            None
        }
    }
}

/// CloudEvents and Spring Kafka in Java. A JDK compiles the program when it runs it.
pub(super) async fn java() -> Option<Producer> {
    const POM: &str = include_str!("java/pom.xml");
    prepared("Java", "default-jdk-headless maven", || {
        let java = java::Java::find().map_err(|error| error.to_string())?;
        let compiler = java.program.with_file_name("javac");
        if !compiler.exists() {
            return Err(format!("{} does not exist", compiler.display()));
        }
        // A change of the versions is another entry of the cache.
        let name = format!(
            "foreign-{:08x}",
            POM.bytes()
                .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(byte))
        );
        let jars = java::jars(&name, POM).map_err(|error| error.to_string())?;
        let class_path = java::class_path(&jars).map_err(|error| error.to_string())?;
        let options = [
            "-Xmx256m",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
            "-cp",
        ];
        let mut command = vec![java.program];
        command.extend(options.map(PathBuf::from));
        command.extend([class_path.into(), source("java/Producer.java")]);
        Ok(command)
    })
    .await
}

/// CloudEvents, kafka-python and Confluent's client in Python, in a virtual environment.
pub(super) async fn python() -> Option<Producer> {
    prepared("Python", "python3 python3-venv", || {
        let folder = installed(
            "python",
            &[include_str!("python/requirements.txt")],
            |folder| {
                let venv: [&OsStr; 3] = ["-m".as_ref(), "venv".as_ref(), folder.as_ref()];
                run("python3", &venv).map_err(|error| format!("python3: {error}"))?;
                let requirements = source("python/requirements.txt");
                let options = [
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--only-binary",
                    ":all:",
                    "--requirement",
                ];
                let options: Vec<&OsStr> = options
                    .iter()
                    .map(OsStr::new)
                    .chain([requirements.as_os_str()])
                    .collect();
                run(folder.join("bin/pip"), &options).map_err(|error| format!("pip: {error}"))
            },
        )?;
        Ok(vec![
            folder.join("bin/python"),
            source("python/producer.py"),
        ])
    })
    .await
}

/// CloudEvents and kafkajs in JavaScript. Node looks for modules beside the program, so it is
/// copied there.
pub(super) async fn javascript() -> Option<Producer> {
    let files = [
        "javascript/package.json",
        "javascript/package-lock.json",
        "javascript/producer.js",
    ];
    let texts = [
        include_str!("javascript/package.json"),
        include_str!("javascript/package-lock.json"),
        include_str!("javascript/producer.js"),
    ];
    prepared("JavaScript", "nodejs npm", move || {
        run("node", &["--version".as_ref()]).map_err(|error| format!("node: {error}"))?;
        let folder = installed("javascript", &texts, |folder| {
            for file in files {
                let (from, to) = (
                    source(file),
                    folder.join(Path::new(file).file_name().expect("a file")),
                );
                fs::copy(&from, to).map_err(|error| format!("{}: {error}", from.display()))?;
            }
            let options = [
                "ci",
                "--silent",
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                "--prefix",
            ];
            let options: Vec<&OsStr> = options
                .iter()
                .map(OsStr::new)
                .chain([folder.as_os_str()])
                .collect();
            run("npm", &options).map_err(|error| format!("npm: {error}"))
        })?;
        Ok(vec!["node".into(), folder.join("producer.js")])
    })
    .await
}
