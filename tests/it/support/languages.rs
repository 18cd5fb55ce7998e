//! Programs in other languages, with libraries in the versions that files in the program's folder
//! name.
//!
//! Libraries are installed once. What is installed or built stays in the build's folder for
//! temporary files (Python, JavaScript, Go) or in the cache of `dev-services` (Java).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use dev_services::java;

use super::services::skipped;

/// Time for a program to end.
const LIMIT: Duration = Duration::from_secs(120);

/// A program whose libraries are installed, without its arguments.
pub(crate) struct Program(Vec<PathBuf>);

impl Program {
    /// Runs the program and returns its standard output.
    ///
    /// # Panics
    /// If the program fails or does not end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> String {
        let [program, leading @ ..] = &self.0[..] else {
            panic!("a command names a program")
        };
        let mut command = tokio::process::Command::new(program);
        command
            .args(leading)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let ended = tokio::time::timeout(LIMIT, command.output()).await;
        let output = ended
            .unwrap_or_else(|_| panic!("{program:?} does not end"))
            .unwrap_or_else(|error| panic!("{program:?}: {error}"));
        assert!(output.status.success(), "{program:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
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

/// Runs a command to its end. Returns the program's name and the last line of its output, or the
/// system's error, if it fails.
fn run(command: &mut Command) -> Result<(), String> {
    let name = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .display()
        .to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = text(&output);
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    Err(format!("{name}: {}", last.unwrap_or_default()))
}

/// The source of a program.
#[derive(Clone)]
pub(crate) struct Source {
    /// Name of the program's folder in `tests/it`.
    folder: &'static str,
    file: &'static str,
    text: String,
}

impl Source {
    /// The source in a file of `folder`, which is a folder of `tests/it`.
    ///
    /// # Panics
    /// If the file cannot be read.
    pub(crate) fn read(folder: &'static str, file: &'static str) -> Self {
        let text = text_of(folder, file);
        Self { folder, file, text }
    }

    /// Replaces a part that the text contains once.
    ///
    /// # Panics
    /// If the text does not contain the part once.
    pub(crate) fn replace(mut self, part: &str, by: &str) -> Self {
        assert_eq!(
            self.text.matches(part).count(),
            1,
            "{part} in {}",
            self.file
        );
        self.text = self.text.replace(part, by);
        self
    }

    /// A folder with the program and these files from beside it. `install` adds the libraries, and
    /// is called again if the files change.
    ///
    /// # Errors
    /// What `install` reports.
    fn installed(
        &self,
        files: &[&str],
        install: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<PathBuf, String> {
        let name = self.folder.replace('/', "-");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let (mark, program) = (folder.join("installed"), folder.join(self.file));
        let texts: Vec<String> = files.iter().map(|file| self.text_of(file)).collect();
        let versions = texts.concat();
        let system = |error: std::io::Error| format!("{}: {error}", folder.display());
        let holds = |file: &Path, text: &str| fs::read_to_string(file).is_ok_and(|old| old == text);
        // Two runs of the tests install one after the other.
        let lock = File::create(folder.with_extension("lock")).map_err(system)?;
        lock.lock().map_err(system)?;
        if !holds(&mark, &versions) {
            if folder.exists() {
                fs::remove_dir_all(&folder).map_err(system)?;
            }
            fs::create_dir_all(&folder).map_err(system)?;
            for (file, text) in files.iter().zip(texts) {
                fs::write(folder.join(file), text).map_err(system)?;
            }
            install(&folder)?;
            fs::write(mark, versions).map_err(system)?;
        }
        // Another test may be reading the same program.
        if !holds(&program, &self.text) {
            fs::write(program, &self.text).map_err(system)?;
        }
        Ok(folder)
    }

    /// The text of the program or of a file beside it.
    fn text_of(&self, file: &str) -> String {
        if file == self.file {
            self.text.clone()
        } else {
            text_of(self.folder, file)
        }
    }

    /// The program, or a line with the remedy for `what` is not tested.
    async fn prepared(
        &self,
        what: &str,
        packages: &str,
        prepare: impl FnOnce(&Self) -> Result<Vec<PathBuf>, String> + Send + 'static,
    ) -> Option<Program> {
        let source = self.clone();
        let prepared = tokio::task::spawn_blocking(move || prepare(&source)).await;
        match prepared.expect("no panic") {
            Ok(command) => Some(Program(command)),
            Err(reason) => {
                let remedy = format!(
                    "on Debian, `apt-get install {packages}`; the libraries are downloaded once"
                );
                skipped(&format!("{what} are not tested ({reason})"), &remedy);
                None
            }
        }
    }

    /// A program in Java, with the libraries of `pom.xml`. A JDK compiles it when it runs it.
    pub(crate) async fn java(&self) -> Option<Program> {
        self.prepared("clients in Java", "default-jdk-headless maven", |source| {
            let java = java::Java::find().map_err(|error| error.to_string())?;
            let compiler = java.program.with_file_name("javac");
            if !compiler.exists() {
                return Err(format!("{} does not exist", compiler.display()));
            }
            let pom = source.text_of("pom.xml");
            // A change of the versions is another entry of the cache.
            let name = format!(
                "foreign-{:08x}",
                pom.bytes()
                    .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(byte))
            );
            let jars = java::jars(&name, &pom).map_err(|error| error.to_string())?;
            let class_path = java::class_path(&jars).map_err(|error| error.to_string())?;
            let folder = source.installed(&[], |_| Ok(()))?;
            let options = [
                "-Xmx256m",
                "-XX:TieredStopAtLevel=1",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
                "-cp",
            ];
            let mut command = vec![java.program];
            command.extend(options.map(PathBuf::from));
            command.extend([class_path.into(), folder.join(source.file)]);
            Ok(command)
        })
        .await
    }

    /// A program in Python, with the libraries of `requirements.txt` in a virtual environment.
    pub(crate) async fn python(&self) -> Option<Program> {
        self.prepared("clients in Python", "python3 python3-venv", |source| {
            let folder = source.installed(&["requirements.txt"], |folder| {
                run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
                run(Command::new(folder.join("bin/pip"))
                    .args(["install", "--quiet", "--disable-pip-version-check"])
                    .args(["--only-binary", ":all:", "--requirement"])
                    .arg(folder.join("requirements.txt")))
            })?;
            Ok(vec![folder.join("bin/python"), folder.join(source.file)])
        })
        .await
    }

    /// A program in JavaScript, with the libraries of `package-lock.json`. Node looks for modules
    /// beside the program.
    pub(crate) async fn javascript(&self) -> Option<Program> {
        self.prepared("clients in JavaScript", "nodejs npm", |source| {
            run(Command::new("node").arg("--version"))?;
            let folder = source.installed(&["package.json", "package-lock.json"], |folder| {
                run(Command::new("npm")
                    .args(["ci", "--silent", "--no-audit", "--no-fund"])
                    .args(["--ignore-scripts", "--prefix"])
                    .arg(folder))
            })?;
            Ok(vec!["node".into(), folder.join(source.file)])
        })
        .await
    }

    /// A program in Go, built with the libraries of `go.mod`.
    pub(crate) async fn go(&self) -> Option<Program> {
        self.prepared("clients in Go", "golang-go", |source| {
            let folder = source.installed(&["go.mod", "go.sum", source.file], |folder| {
                let go = |arguments: &[&str]| {
                    // Without parts in C, a build needs no C compiler.
                    run(Command::new("go")
                        .args(arguments)
                        .env("CGO_ENABLED", "0")
                        .current_dir(folder))
                };
                go(&["mod", "download"])?;
                // Code that does not compile is an error of the code, not of the machine.
                go(&["build", "-o", "program", "."]).unwrap_or_else(|error| panic!("{error}"));
                Ok(())
            })?;
            Ok(vec![folder.join("program")])
        })
        .await
    }
}

/// The text of a file in a folder of `tests/it`.
fn text_of(folder: &str, file: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/it", folder, file]
        .iter()
        .collect();
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
