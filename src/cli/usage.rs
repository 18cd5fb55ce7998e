//! Help and usage errors.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};

use super::config::PROPERTY_FLAG;
use super::exit::{CONFIGURATION, DONE};
use super::terminal::Color;
use super::{output, stderr};

/// Prints help to stdout, or an error without secrets to stderr.
pub(super) fn print(error: clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let text = error.render();
        let has_color = Color::of_arguments(&arguments()).is_on(std::io::stdout().is_terminal());
        output::own(&if has_color {
            text.ansi().to_string()
        } else {
            text.to_string()
        });
        return ExitCode::from(DONE);
    }
    stderr::lines(
        redacted(error, &arguments())
            .render()
            .to_string()
            .trim_end(),
    );
    ExitCode::from(CONFIGURATION)
}

/// Returns the command line of the process.
fn arguments() -> Vec<String> {
    std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}

/// Replaces misplaced arguments that may be secrets.
fn redacted(mut error: clap::Error, arguments: &[String]) -> clap::Error {
    for kind in [
        ContextKind::InvalidArg,
        ContextKind::InvalidSubcommand,
        ContextKind::InvalidValue,
    ] {
        if let Some(ContextValue::String(text)) = error.get(kind)
            && (text.contains(['@', '=', '/']) || is_value_of_property(text, arguments))
        {
            let name = text
                .split_once('=')
                .map(|(name, _)| name)
                .filter(|name| !name.contains(['@', '/']));
            let text = name.map_or("***".to_owned(), |name| format!("{name}=***"));
            error.insert(kind, ContextValue::String(text));
            // A suggestion may contain the argument.
            error.remove(ContextKind::Suggested);
        }
    }
    error
}

/// Returns `true` if a property was written as `-X NAME VALUE` instead of `-X NAME=VALUE`.
fn is_value_of_property(text: &str, arguments: &[String]) -> bool {
    let is_flag =
        |argument: &str| argument == "-X" || argument.trim_start_matches('-') == PROPERTY_FLAG;
    arguments
        .windows(3)
        .any(|window| is_flag(&window[0]) && !window[1].contains('=') && window[2] == text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::help::parse;

    #[test]
    fn an_argument_in_the_wrong_place_does_not_show_a_secret() {
        for line in [
            "tidings postgres://ann:hunter2@db/shop",
            "tidings relay postgres://ann:hunter2@db/shop",
            "tidings relay --databse-url=postgres://ann:hunter2@db/shop",
            "tidings relay --databse-url postgres://ann:hunter2@db/shop",
            "tidings relay --sasl.password=hunter2",
            "tidings relay sasl.password=hunter2",
            "tidings relay -Zsasl.password=hunter2",
            "tidings migrate --wait postgres://ann:hunter2@db",
            "tidings --database-url=postgres://ann:hunter2@db --nope",
            "tidings -X sasl.password hunter2",
            "tidings relay -X sasl.pasword hunter2",
        ] {
            let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let error = parse(&arguments).expect_err(line);
            let text = redacted(error, &arguments).render().to_string();
            assert!(!text.contains("hunter2"), "{line}: {text}");
        }
        let error = parse(["tidings", "statsu"]).expect_err("a misspelt command");
        assert!(redacted(error, &[]).render().to_string().contains("statsu"));
    }
}
