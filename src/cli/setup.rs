//! Commands that use neither the configuration nor a service: `init`, `config schema`,
//! `completions` and `man`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

use super::config::{schema, template};
use super::escape::escaped;
use super::exit::{DONE, Failure};
use super::{help, output};

/// The name of the file that means stdout.
const STDOUT: &str = "-";

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The file, which must not exist. - writes to standard output
    #[arg(value_name = "FILE", default_value = "tidings.toml")]
    file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print the JSON Schema of the configuration file
    Schema,
}

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Command whose page is printed, e.g. relay rewind
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write the pages of all commands to this folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    folder: Option<PathBuf>,
}

/// Writes a configuration file in which each setting is a comment with its default.
pub(super) fn init(args: &InitArgs) -> Result<ExitCode, Failure> {
    let text = template::text();
    if args.file == Path::new(STDOUT) {
        output::own(&text);
        return Ok(ExitCode::from(DONE));
    }
    let shown = escaped(&args.file.display().to_string()).into_owned();
    // The file may later contain a password, so only its owner may read it.
    let mut options = OpenOptions::new();
    let created = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&args.file);
    let mut file = created.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::Refused(format!(
            "{shown} exists and was not changed\n  \
             -> name another file, or print the settings with `tidings init -`"
        )),
        _ => Failure::failed(&format!("cannot create {shown}"), &error),
    })?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    written.map_err(|error| {
        // Half a file would have to be removed before the next attempt.
        let _ = std::fs::remove_file(&args.file);
        Failure::failed(&format!("cannot write {shown}"), &error)
    })?;
    output::lines(&format!(
        "{shown} is written\n  -> set url and brokers in it, and run `tidings check --config {shown}`\n"
    ));
    Ok(ExitCode::from(DONE))
}

/// Prints the JSON Schema of the configuration file.
pub(super) fn config(command: &ConfigCommand) -> Result<ExitCode, Failure> {
    match command {
        ConfigCommand::Schema => output::json(&schema::schema())?,
    }
    Ok(ExitCode::from(DONE))
}

/// Prints the completions of a shell.
pub(super) fn completions(args: &CompletionsArgs) -> ExitCode {
    output::own(&script(args.shell));
    ExitCode::from(DONE)
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut help::command(), "tidings", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Prints the manual page of a command, or writes those of all commands.
pub(super) fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    let mut root = help::command().disable_help_subcommand(true);
    root.build();
    if let Some(folder) = &args.folder {
        std::fs::create_dir_all(folder)
            .and_then(|()| write_pages(&root, folder))
            .map_err(|error| {
                let folder = folder.display().to_string();
                Failure::failed(&format!("cannot write to {}", escaped(&folder)), &error)
            })?;
        return Ok(ExitCode::from(DONE));
    }
    let mut command = &root;
    for name in &args.command {
        command = command.find_subcommand(name).ok_or_else(|| {
            Failure::Options(format!(
                "`{}` is not a command\n  -> `tidings -h` lists the commands",
                escaped(&args.command.join(" "))
            ))
        })?;
    }
    output::own(&page(command).map_err(|error| Failure::failed("cannot write the page", &error))?);
    Ok(ExitCode::from(DONE))
}

/// Writes the page of a command and of each of its subcommands.
fn write_pages(command: &clap::Command, folder: &Path) -> std::io::Result<()> {
    let name = Man::new(command.clone()).get_filename();
    std::fs::write(folder.join(name), page(command)?)?;
    command
        .get_subcommands()
        .try_for_each(|inner| write_pages(inner, folder))
}

fn page(command: &clap::Command) -> std::io::Result<String> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    // Headings of the help have escape sequences, which clap removes and roff does not.
    Ok(without_sequences(&String::from_utf8_lossy(&page)))
}

/// Removes the sequences that set a style.
fn without_sequences(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |out, part| {
        out + part.split_once('m').map_or(part, |(_, rest)| rest)
    })
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn the_completions_of_each_shell_name_every_command() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            for command in help::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {command}");
            }
            assert!(!script.contains('\u{1b}'), "{shell}");
        }
    }

    #[test]
    fn each_command_has_a_page_without_control_characters() {
        let folder = std::env::temp_dir().join(format!("tidings-man-{}", uuid::Uuid::now_v7()));
        let args = ManArgs {
            command: Vec::new(),
            folder: Some(folder.clone()),
        };
        man(&args).expect("the folder can be written");
        for name in ["tidings.1", "tidings-relay.1", "tidings-relay-rewind.1"] {
            let page = std::fs::read_to_string(folder.join(name)).expect(name);
            assert!(page.contains(".TH") && page.contains("Examples:"), "{page}");
            assert!(!page.contains('\u{1b}'), "{name}");
        }
        std::fs::remove_dir_all(&folder).expect("the folder can be removed");
    }
}
