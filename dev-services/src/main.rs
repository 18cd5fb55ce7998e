//! `cargo services run -- CMD` provides a Postgres and a Kafka while CMD runs.

use std::io::Read;
use std::process::{Command, ExitCode};

use tidings_testing::{Error, Services};

const HELP: &str = "\
Starts a real Postgres and a real Kafka, and removes them when it ends.

  cargo services run -- CMD ARGS…   start both, run CMD with DATABASE_URL and KAFKA_BROKERS set,
                                    exit with its code
  cargo services up                 start both, print the variables for a shell, wait for Ctrl-C or
                                    the end of the input
  cargo services --help             this text

A service whose address is set in DATABASE_URL or KAFKA_BROKERS is not started. Otherwise Docker is
used if an engine responds (TIDINGS_DEV_SERVICES=programs skips it), then programs on this machine:
Postgres 15+, Java 17+, and mvn once to download Kafka into the cache (set TIDINGS_CACHE to move
it). TIDINGS_POSTGRES_BIN sets the folder of another Postgres, and TIDINGS_POSTGRES_RELEASE (18.1.0)
a release to download.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["run", "--", command @ ..] | ["run", command @ ..] if !command.is_empty() => run(command),
        ["up"] => up(),
        ["--help" | "-h" | "help"] => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn run(command: &[&str]) -> Result<ExitCode, Error> {
    let mut services = Services::start()?;
    let mut child = Command::new(command[0]);
    child
        .args(&command[1..])
        .env("DATABASE_URL", services.database_url())
        .env("KAFKA_BROKERS", services.brokers());
    let run = || format!("run `{}`", command[0]);
    let mut child = child.spawn().map_err(|source| Error::System {
        doing: run(),
        source,
    })?;
    services.outlast(child.id())?;
    let status = child.wait().map_err(|source| Error::System {
        doing: run(),
        source,
    })?;
    drop(services);
    Ok(ExitCode::from(code(status)))
}

/// Returns the exit code as a shell reports it: 128 plus the signal for a killed program.
fn code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn up() -> Result<ExitCode, Error> {
    let services = Services::start()?;
    eprintln!("{}", services.describe());
    println!(
        "export DATABASE_URL='{}'\nexport KAFKA_BROKERS='{}'",
        services.database_url(),
        services.brokers()
    );
    eprintln!("running until Ctrl-C or the end of the input");
    let mut input = std::io::stdin().lock();
    let mut buffer = [0; 256];
    while input.read(&mut buffer).is_ok_and(|read| read > 0) {}
    drop(services);
    Ok(ExitCode::SUCCESS)
}
