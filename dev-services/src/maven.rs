//! Downloads with `mvn`, which uses the mirrors and proxies that are configured on the machine.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Error, programs};

const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1";

/// Runs a goal of Maven's dependency plugin in `folder`, where the plugin also stores its marker
/// files. Prints the name of the download first.
pub(crate) fn run(
    what: &str,
    folder: &Path,
    goal: &str,
    arguments: &[String],
) -> Result<(), Error> {
    if !programs::is_installed("mvn") {
        let remedy = "apt-get install maven (Debian, Ubuntu) or brew install maven (macOS); \
                      it is needed once, for the download";
        return Err(Error::missing(
            format!("`mvn`, which downloads {what},"),
            remedy,
        ));
    }
    eprintln!("downloading {what} with mvn (once)");
    let mut mvn = Command::new("mvn");
    mvn.args(["--batch-mode", "--quiet", "-Dstyle.color=never"])
        .arg(format!("{PLUGIN}:{goal}"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null());
    let output = mvn.output().map_err(Error::system("run `mvn`"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Fetch {
        what: what.to_owned(),
        output: errors(&String::from_utf8_lossy(&output.stdout)),
    })
}

/// Returns the first lines of the output. They describe the error; the rest is about Maven.
fn errors(output: &str) -> String {
    output
        .lines()
        .filter(|line| !line.trim().is_empty())
        .take(4)
        .collect::<Vec<_>>()
        .join("\n")
}
