//! Log lines on stderr, as text or JSON.

use std::fmt;
use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::config::{Config, LogFormat, Place};
use super::escape::{escaped, shortened};
use super::stderr::{self, LogLines};
use super::terminal::Color;

/// Characters of a field that are logged: more than any message of Tidings, fewer than a record's
/// value.
const FIELD_CHARACTERS_MAX: usize = 4_096;

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging.
///
/// A relay logs at the configured level. The other commands print their result and log only
/// warnings, unless a level is configured.
pub(super) fn start(config: &Config, color: Color, daemon: bool) {
    let asked = config
        .entries
        .iter()
        .any(|entry| entry.key == "log.level" && entry.place != Place::Default);
    let level = if daemon || asked {
        config.log_level.as_str()
    } else {
        "warn"
    };
    let (filter, handle) = reload::Layer::new(EnvFilter::new(level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| LogLines)
        .log_internal_errors(false);
    let lines = match config.log_format {
        LogFormat::Human => {
            let fields = debug_fn(write_field).delimited(" ");
            lines
                .with_ansi(color.is_on(std::io::stderr().is_terminal()))
                .fmt_fields(fields)
                .boxed()
        }
        LogFormat::Json => {
            stderr::use_json();
            lines
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .boxed()
        }
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    let _ = FILTER.set(handle);
}

/// Changes the log filter.
pub(super) fn set_level(level: &str) {
    if let Some(Err(error)) = FILTER
        .get()
        .map(|filter| filter.reload(EnvFilter::new(level)))
    {
        tracing::warn!(%error, level, "cannot change the log level");
    }
}

/// Writes a field as tracing-subscriber does, and escapes unprintable characters.
fn write_field(out: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    let value = shortened(&value, FIELD_CHARACTERS_MAX);
    let (name, value) = (field.name().trim_start_matches("r#"), escaped(&value));
    match name {
        "message" => write!(out, "{value}"),
        _ if out.has_ansi_escapes() => {
            write!(out, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}")
        }
        _ => write!(out, "{name}={value}"),
    }
}
