//! Log lines: to stderr, for people or as JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::config::{Config, LogFormat, Place};

/// Starts logging. Only the relay, which runs for months, tells what it does unasked; the other commands print their result.
pub(super) fn start(config: &Config, daemon: bool) {
    let asked = config.entries.iter().any(|entry| entry.key == "log.level" && entry.place != Place::Default);
    let level = if daemon || asked { config.log_level.as_str() } else { "warn" };
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(level)).with_writer(std::io::stderr).with_ansi(color);
    match config.log_format {
        LogFormat::Human => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).init(),
    }
}
