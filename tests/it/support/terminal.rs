//! Commands on a terminal of their own.

use std::process::Command;

/// Returns `tidings {line}` on a pseudo terminal, which script(1) creates.
///
/// The environment of the terminal is fixed. `exec` replaces the shell, because a shell that waits
/// for the command dies of Ctrl-C and hides the command's exit code.
pub(crate) fn on_a_terminal(line: &str) -> Command {
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--flush", "--command"])
        .arg(format!("exec {} {line}", env!("CARGO_BIN_EXE_tidings")))
        .arg("/dev/null")
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm")
        .env_remove("NO_COLOR");
    command
}
