//! What `outbox.*` and `routing.regex` mean, or what is wrong with them.

use super::key::{self, Key};
use super::settle::Settled;
use super::value::Meant;
use crate::relay::{
    ADDITIONAL_MAX, AdditionalColumn, DebeziumOutbox, ExistingRows, HandOver, Offset, OutboxField,
    OutboxRows, Placement, TopicRewrite,
};

/// EventRouter's defaults.
const REGEX: &str = "(?<routedByValue>.*)";
const REPLACEMENT: &str = "outbox.event.${routedByValue}";

/// Keys that mean something only beside `outbox.table`.
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

impl Settled {
    /// The Debezium table, if one is named.
    pub(super) fn debezium(&mut self) -> Option<DebeziumOutbox> {
        let Some(table) = self.given(&key::OUTBOX_TABLE) else {
            for key in OF_TABLE
                .into_iter()
                .filter(|key| self.written.contains_key(key.path))
                .collect::<Vec<_>>()
            {
                self.wrong(
                    key,
                    "is about a Debezium outbox, and none is named".into(),
                    "name it in outbox.table, or remove this key".into(),
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
                "is not a table's name".into(),
                "write schema.name, without quotes, in the letters that Postgres has".into(),
            );
            return None;
        };
        let mut outbox = DebeziumOutbox::new(schema, table);
        outbox.columns = self.items(&key::OUTBOX_COLUMNS, "write field=column, for instance aggregateid=order_id; the fields are id, aggregatetype, aggregateid, type, payload, timestamp", column);
        outbox.additional = self.items(
            &key::OUTBOX_ADDITIONAL,
            "write column:header or column:envelope, and :alias for another name there",
            additional,
        );
        if outbox.additional.len() > ADDITIONAL_MAX {
            self.wrong(
                &key::OUTBOX_ADDITIONAL,
                format!("names {} columns", outbox.additional.len()),
                format!("name {ADDITIONAL_MAX} at most"),
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

    /// Nothing keeps the rows of such a table until somebody decides.
    fn park_nothing(&mut self) {
        let key = &key::ON_UNDELIVERABLE;
        if !self.written.contains_key(key.path) {
            self.meant.insert(key.path, Meant::Text("stop".into()));
        } else if self.text(key) == "park" {
            let remedy = "write stop or dead-letter, or leave it out, which is stop";
            self.wrong(
                key,
                "is not for a Debezium outbox, whose rows nobody keeps for the relay".into(),
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
                "copy the whole answer, with one offset in it".into(),
            );
            return None;
        }
        if slot.is_none() && offset.is_some() {
            self.wrong(
                &key::OUTBOX_TAKEN_OFFSET,
                "is of a connector whose slot is not named".into(),
                "name its slot.name in outbox.takes_over".into(),
            );
        }
        Some(HandOver {
            slot: slot?,
            offset: offset.and_then(Result::ok),
        })
    }

    /// How the topic is made of the aggregate type, if not by the template.
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
                let remedy = "write a regular expression of https://docs.rs/regex and a replacement with its groups as $1 or ${name}";
                self.wrong(wrong, format!("is no rewriting: {error}"), remedy.into());
                None
            }
        }
    }

    fn given(&self, key: &'static Key) -> Option<String> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    /// The items of a list; the first that cannot be read is reported.
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
                        format!("has an item that cannot be read: {item:?}"),
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

/// What Postgres takes for a name, if quoted; without what this configuration uses to separate names.
fn is_identifier(name: &str) -> bool {
    (1..=63).contains(&name.len()) && !name.contains(['.', ',', ':', '=', '"', '\0'])
}
