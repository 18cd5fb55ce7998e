//! `tidings dead-letters list` without a topic: the newest letters of all topics.

use std::process::ExitCode;

use super::REASON_CHARACTERS_MAX;
use crate::cli::escape::{escaped, shortened};
use crate::cli::exit::{DONE, FAILED, Failure};
use crate::cli::table::{self, Align};
use crate::cli::{output, stderr};
use crate::inspect::dead_letters::{LetterSummary, NewestLetters, newest};
use crate::inspect::units::{counted, grouped, utc};
use crate::kafka::Settings;
use crate::subscriber::failure::redrive::Filter;

/// Letters that are listed unless `--max` is set: as many as the console lists of a topic.
const LETTERS_MAX: usize = 500;

/// Prints the newest letters of all topics. The exit code reports topics that could not be read, so
/// that a script does not treat the list as complete.
pub(super) async fn list(
    settings: &Settings,
    filter: &Filter,
    json: bool,
) -> Result<ExitCode, Failure> {
    let max = filter.max.unwrap_or(LETTERS_MAX);
    let newest = newest(settings, filter, max)
        .await
        .map_err(|error| Failure::failed("cannot list the topics", &error))?;
    let gaps = gaps(&newest, filter.max.is_some());
    match json {
        true => {
            output::json(&newest.letters)?;
            if !gaps.is_empty() {
                stderr::lines(gaps.trim_end());
            }
        }
        false => output::lines(&match gaps.is_empty() {
            true => text(&newest),
            false => format!("{}\n{gaps}", text(&newest)),
        }),
    }
    Ok(ExitCode::from(match newest.unread.is_empty() {
        true => DONE,
        false => FAILED,
    }))
}

fn text(newest: &NewestLetters) -> String {
    if newest.letters.is_empty() {
        return match newest.unread.is_empty() {
            true => "no dead letters in any topic whose name ends with .dlt\n",
            false => "no dead letters in the topics that could be read\n",
        }
        .into();
    }
    let head = [
        "topic",
        "letter",
        "failed",
        "type",
        "id",
        "subscriber",
        "reason",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(newest.letters.iter().map(row));
    use Align::{Left, Text};
    table::list(&[Left, Left, Left, Left, Left, Left, Text], &rows)
}

fn row(letter: &LetterSummary) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        letter.topic.clone(),
        format!("{}/{}", letter.partition, letter.offset),
        utc(letter.failed_at),
        Some(letter.event_type.clone())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(dash),
        letter.id.clone().unwrap_or_else(dash),
        letter
            .origin
            .as_ref()
            .map_or_else(dash, |origin| origin.group.clone()),
        shortened(&letter.reason, REASON_CHARACTERS_MAX).into_owned(),
    ]
}

/// Describes the letters that the list does not contain.
fn gaps(newest: &NewestLetters, has_max: bool) -> String {
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let mut text = String::new();
    let shown = newest.letters.len();
    if shown < newest.matching && !has_max {
        text.push_str(&format!(
            "the newest {} of {} letters; --max NUMBER lists more\n",
            grouped(number(shown)),
            grouped(number(newest.matching))
        ));
    }
    if !newest.unread.is_empty() {
        let count = counted(number(newest.unread.len()), "topic");
        text.push_str(&format!(
            "{count} could not be read, so letters may be missing:\n"
        ));
    }
    for (topic, reason) in &newest.unread {
        text.push_str(&format!("  {}: {}\n", escaped(topic), escaped(reason)));
    }
    text
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use unicode_width::UnicodeWidthStr as _;

    use super::*;
    use crate::subscriber::failure::redrive::Origin;

    fn letter(offset: i64) -> LetterSummary {
        LetterSummary {
            topic: "order.inventory.dlt".into(),
            partition: 3,
            offset,
            id: Some("0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10".into()),
            event_type: "OrderPlaced".into(),
            key: "7".into(),
            reason: "the payload is not an event: ".repeat(9),
            failed_at: DateTime::UNIX_EPOCH,
            attempts: 1,
            replays: 0,
            origin: Some(Origin {
                topic: "order".into(),
                group: "inventory".into(),
                partition: 3,
                offset: 9,
            }),
        }
    }

    #[test]
    fn a_letter_is_shown_with_its_place_its_event_and_its_subscriber_in_80_columns() {
        let newest = NewestLetters {
            letters: vec![letter(120)],
            matching: 1,
            unread: Vec::new(),
        };
        assert_eq!(gaps(&newest, false), "");
        let text = text(&newest);
        for part in [
            "order.inventory.dlt\n",
            "3/120\n",
            "1970-01-01 00:00:00Z\n",
            "OrderPlaced\n",
            "0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10\n",
            "inventory\n",
            "the payload is not an event",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
    }

    #[test]
    fn topics_that_could_not_be_read_are_named_with_their_reasons() {
        let newest = NewestLetters {
            unread: vec![("a.x.dlt".into(), "denied\u{1b}".into())],
            ..NewestLetters::default()
        };
        let shown = gaps(&newest, true);
        assert!(shown.starts_with("1 topic could not be read"), "{shown}");
        assert!(shown.ends_with("\n  a.x.dlt: denied\\u{1b}\n"), "{shown}");
        assert!(text(&newest).contains("in the topics that could be read"));
    }
}
