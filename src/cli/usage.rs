//! Help and errors of the command line itself.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};

use super::exit::{CONFIGURATION, DONE};
use super::{output, stderr};

/// Prints help to stdout, or an error without secrets to stderr.
pub(super) fn print(error: clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let text = error.render();
        let has_color = std::io::stdout().is_terminal();
        output::own(&if has_color { text.ansi().to_string() } else { text.to_string() });
        return ExitCode::from(DONE);
    }
    stderr::lines(redacted(error).render().to_string().trim_end());
    ExitCode::from(CONFIGURATION)
}

/// Hides arguments in the wrong place that may hold a secret.
fn redacted(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand, ContextKind::InvalidValue] {
        if let Some(ContextValue::String(text)) = error.get(kind)
            && text.contains(['@', '=', '/'])
        {
            let name = text.split_once('=').map(|(name, _)| name).filter(|name| !name.contains(['@', '/', '.']));
            let text = name.map_or("***".to_owned(), |name| format!("{name}=***"));
            error.insert(kind, ContextValue::String(text));
        }
    }
    error
}
