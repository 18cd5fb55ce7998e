//! Validation of `outbox.*` and `routing.regex`.

use super::key::{self, Key};
use super::resolve::Resolved;
use super::value::Meant;
use crate::relay::{
    ADDITIONAL_MAX, AdditionalColumn, DebeziumOutbox, ExistingRows, HandOver, Offset, OutboxField,
    OutboxRows, Placement, TopicRewrite,
};

/// The defaults of EventRouter.
const REGEX: &str = "(?<routedByValue>.*)";
const REPLACEMENT: &str = "outbox.event.${routedByValue}";

/// Keys that are valid only together with `outbox.table`.
const OF_TABLE: [&Key; 8] = [
    &key::OUTBOX_COLUMNS,
    &key::OUTBOX_ADDITIONAL,
    &key::OUTBOX_EXPAND_JSON,
    &key::OUTBOX_ROWS,
    &key::OUTBOX_EXISTING,
    &key::OUTBOX_PUBLICATION,
    &key::OUTBOX_TAKES_OVER,
    &key::OUTBOX_TAKEN_OFFSET,
];

impl Resolved {
    /// Returns the Debezium table, if one is configured.
    pub(super) fn debezium(&mut self) -> Option<DebeziumOutbox> {
        let Some(table) = self.given(&key::OUTBOX_TABLE) else {
            for key in OF_TABLE
                .into_iter()
                .filter(|key| self.written.contains_key(key.path))
                .collect::<Vec<_>>()
            {
                self.wrong(
                    key,
                    "applies to a Debezium outbox, but outbox.table is not set".into(),
                    "set outbox.table, or remove this key".into(),
                );
            }
            return None;
        };
        let Some((schema, table)) = table
            .split_once('.')
            .filter(|(schema, table)| is_identifier(schema) && is_identifier(table))
        else {
            self.wrong(
                &key::OUTBOX_TABLE,
                "is not a table name".into(),
                "write schema.name without quotes, in the case that Postgres stores".into(),
            );
            return None;
        };
        let mut outbox = DebeziumOutbox::new(schema, table);
        outbox.columns = self.items(
            &key::OUTBOX_COLUMNS,
            "write field=column, for instance aggregateid=order_id; \
             the fields are id, aggregatetype, aggregateid, type, payload, timestamp",
            column,
        );
        outbox.additional = self.items(
            &key::OUTBOX_ADDITIONAL,
            "write column:header or column:envelope, with :alias for another name",
            additional,
        );
        if outbox.additional.len() > ADDITIONAL_MAX {
            self.wrong(
                &key::OUTBOX_ADDITIONAL,
                format!("lists {} columns", outbox.additional.len()),
                format!("list at most {ADDITIONAL_MAX}"),
            );
        }
        outbox.expand_json =
            self.meant.get(key::OUTBOX_EXPAND_JSON.path) == Some(&Meant::Boolean(true));
        outbox.rows = if self.text(&key::OUTBOX_ROWS) == "deleted" {
            OutboxRows::Deleted
        } else {
            OutboxRows::Kept
        };
        outbox.existing = if self.text(&key::OUTBOX_EXISTING) == "leave" {
            ExistingRows::Leave
        } else {
            ExistingRows::Publish
        };
        outbox.publication = self.given(&key::OUTBOX_PUBLICATION);
        outbox.hand_over = self.hand_over();
        self.park_nothing();
        Some(outbox)
    }

    /// Excludes the policy `park`: nothing keeps the rows of such a table until an operator
    /// decides.
    fn park_nothing(&mut self) {
        let key = &key::ON_UNDELIVERABLE;
        if !self.written.contains_key(key.path) {
            self.meant.insert(key.path, Meant::Text("stop".into()));
        } else if self.text(key) == "park" {
            let remedy = "write stop or dead-letter; the default for this table is stop";
            self.wrong(
                key,
                "is not available for a Debezium outbox, because its rows are not kept \
                 for the relay"
                    .into(),
                remedy.into(),
            );
        }
    }

    fn hand_over(&mut self) -> Option<HandOver> {
        let offset = self
            .given(&key::OUTBOX_TAKEN_OFFSET)
            .map(|text| Offset::parse(&text));
        let slot = self.given(&key::OUTBOX_TAKES_OVER);
        if let Some(Err(error)) = offset {
            self.wrong(
                &key::OUTBOX_TAKEN_OFFSET,
                format!("is {error}"),
                "copy the whole response, which contains exactly one offset".into(),
            );
            return None;
        }
        if slot.is_none() && offset.is_some() {
            self.wrong(
                &key::OUTBOX_TAKEN_OFFSET,
                "belongs to a connector whose slot is not set".into(),
                "write its slot.name to outbox.takes_over".into(),
            );
        }
        Some(HandOver {
            slot: slot?,
            offset: offset.and_then(Result::ok),
        })
    }

    /// Returns the rewrite of the aggregate type to a topic, if it replaces the template.
    pub(super) fn topic_rewrite(&mut self) -> Option<TopicRewrite> {
        let (regex, replacement) = (self.given(&key::REGEX), self.given(&key::REPLACEMENT));
        if regex.is_none() && replacement.is_none() {
            return None;
        }
        let wrong = if regex.is_some() {
            &key::REGEX
        } else {
            &key::REPLACEMENT
        };
        match TopicRewrite::parse(
            regex.as_deref().unwrap_or(REGEX),
            replacement.as_deref().unwrap_or(REPLACEMENT),
        ) {
            Ok(rewrite) => Some(rewrite),
            Err(error) => {
                let remedy = "write a regular expression (https://docs.rs/regex), \
                              and a replacement that refers to its groups as $1 or ${name}";
                self.wrong(
                    wrong,
                    format!("is not a valid rewrite: {error}"),
                    remedy.into(),
                );
                None
            }
        }
    }

    fn given(&self, key: &'static Key) -> Option<String> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    /// Returns the items of a list. Reports the first invalid one.
    fn items<T>(
        &mut self,
        key: &'static Key,
        remedy: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let text = self.text(key);
        let mut items = Vec::new();
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            match parse(item) {
                Some(item) => items.push(item),
                None => {
                    self.wrong(
                        key,
                        format!("has an invalid item: {item:?}"),
                        remedy.to_owned(),
                    );
                    break;
                }
            }
        }
        items
    }
}

fn column(item: &str) -> Option<(OutboxField, String)> {
    let (field, column) = item.split_once('=')?;
    let field = OutboxField::ALL
        .into_iter()
        .find(|known| known.name() == field.trim())?;
    Some((field, column.trim().to_owned())).filter(|(_, column)| is_identifier(column))
}

fn additional(item: &str) -> Option<AdditionalColumn> {
    let mut parts = item.split(':').map(str::trim);
    let (column, placement) = (parts.next()?, parts.next()?);
    let alias = parts.next().unwrap_or(column);
    let placement = match placement {
        "header" => Placement::Header,
        "envelope" => Placement::Envelope,
        _ => return None,
    };
    let sound = is_identifier(column) && !alias.is_empty() && parts.next().is_none();
    sound.then(|| AdditionalColumn {
        column: column.to_owned(),
        placement,
        alias: alias.to_owned(),
    })
}

/// Returns `true` for a valid quoted identifier of Postgres that contains none of the separators of
/// this configuration.
fn is_identifier(name: &str) -> bool {
    (1..=63).contains(&name.len()) && !name.contains(['.', ',', ':', '=', '"', '\0'])
}
