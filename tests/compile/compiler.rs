//! The compiler with the libraries of this test run.

use std::{
    collections::HashMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;

/// Crates that the programs use.
const CRATES: &[&str] = &[
    "serde",
    "serde_json",
    "sqlx",
    "tidings",
    "tokio",
    "tokio_util",
    "tower",
    "uuid",
];

/// Compiles programs against libraries that are already built.
pub(crate) struct Compiler {
    libraries: HashMap<String, PathBuf>,
    dependencies: PathBuf,
}

impl Compiler {
    /// Returns the compiler of this test run.
    pub(crate) fn of_this_build() -> &'static Self {
        static COMPILER: LazyLock<Compiler> = LazyLock::new(Compiler::find);
        &COMPILER
    }

    /// Finds the libraries. Cargo lists them without building anything, because this test was built
    /// with the same options.
    fn find() -> Self {
        let test = std::env::current_exe().expect("the path of this test");
        let dependencies = test.parent().expect("a folder").to_owned();
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["test", "--no-run", "--offline", "--message-format=json"])
            .args(["--workspace", "--test", "compile"]);
        if dependencies.ends_with("release/deps") {
            cargo.arg("--release");
        }
        let output = cargo.output().expect("cargo runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut newest: HashMap<String, (Vec<u64>, PathBuf)> = HashMap::new();
        for line in output.stdout.split(|byte| *byte == b'\n') {
            let Some((name, version, path)) = library(line) else {
                continue;
            };
            let known = newest.get(&name).is_none_or(|(other, _)| *other < version);
            if CRATES.contains(&&*name) && known {
                newest.insert(name, (version, path));
            }
        }
        let libraries = newest
            .into_iter()
            .map(|(name, (_, path))| (name, path))
            .collect();
        Self {
            libraries,
            dependencies,
        }
    }

    /// Compiles a program up to its metadata. Returns the errors, or an empty string if there are
    /// none.
    ///
    /// Each error has its message, the places and labels in the program, and its notes. Text that
    /// depends on the lines of the library itself is left out.
    pub(crate) fn compile(&self, program: &Path) -> String {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compile");
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc
            .args(["--edition", "2024", "--crate-type", "bin", "-Awarnings"])
            .args(["--emit", "metadata", "--error-format", "json"])
            .arg("--out-dir")
            .arg(out)
            .arg("-L")
            .arg(format!("dependency={}", self.dependencies.display()));
        for (name, path) in &self.libraries {
            rustc
                .arg("--extern")
                .arg(format!("{name}={}", path.display()));
        }
        let output = rustc.arg(program).output().expect("rustc runs");
        let mut text = String::new();
        for line in output.stderr.split(|byte| *byte == b'\n') {
            match serde_json::from_slice::<Value>(line) {
                Ok(diagnostic) => render(&diagnostic, &mut text),
                Err(_) if line.is_empty() => {}
                Err(_) => panic!("rustc: {}", String::from_utf8_lossy(line)),
            }
        }
        assert_eq!(output.status.success(), text.is_empty(), "{text}");
        text
    }
}

/// Returns the name, version and file of a library from one of cargo's messages.
fn library(line: &[u8]) -> Option<(String, Vec<u64>, PathBuf)> {
    let message: Value = serde_json::from_slice(line).ok()?;
    let target = message.get("target")?;
    let kinds = target["kind"].as_array()?;
    kinds
        .iter()
        .any(|kind| kind == "lib" || kind == "rlib")
        .then_some(())?;
    let files = message["filenames"].as_array()?;
    let file = files
        .iter()
        .filter_map(Value::as_str)
        .find(|file| file.ends_with(".rlib"))?;
    let package = message["package_id"].as_str()?;
    let version = package.rsplit(['@', '#']).next()?;
    let version = version.split('.').map_while(|part| part.parse().ok());
    let name = target["name"].as_str()?.replace('-', "_");
    Some((name, version.collect(), file.into()))
}

fn render(diagnostic: &Value, text: &mut String) {
    let message = diagnostic["message"].as_str().unwrap_or_default();
    if diagnostic["level"] != "error" || message.starts_with("aborting due to") {
        return;
    }
    let code = diagnostic["code"]["code"].as_str();
    let code = code.map(|code| format!("[{code}]")).unwrap_or_default();
    let _ = writeln!(text, "error{code}: {message}");
    for span in diagnostic["spans"].as_array().into_iter().flatten() {
        if span["is_primary"] == true {
            let label = span["label"].as_str().unwrap_or_default();
            let _ = writeln!(
                text,
                "  at {}:{} {label}",
                span["line_start"], span["column_start"]
            );
        }
    }
    for child in diagnostic["children"].as_array().into_iter().flatten() {
        let level = child["level"].as_str().unwrap_or_default();
        let note = child["message"].as_str().unwrap_or_default();
        // These name a file of this machine.
        if note.starts_with("the full name for the type") || note.contains("`--verbose`") {
            continue;
        }
        let _ = writeln!(text, "  {level}: {}", note.replace('\n', "\n    "));
    }
    text.push('\n');
}
