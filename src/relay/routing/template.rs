//! Topic of an event: the row's own topic, or a template over the row.

use std::collections::HashMap;

use crate::{
    event::{check_topic_name, is_reserved_topic, is_topic_character},
    kafka::Outgoing,
    relay::{TopicRewrite, sink::PRODUCERS},
};

/// A topic template such as `outbox.event.{aggregatetype}`, parsed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicTemplate {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    AggregateType,
    EventType,
}

/// An invalid topic template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A placeholder that is not a column.
    #[error("`{{{0}}}` is not a placeholder: use {{aggregatetype}} or {{type}}")]
    Placeholder(String),
    /// A brace without its counterpart.
    #[error("a brace is not closed or not opened")]
    Brace,
    /// A character that Kafka does not allow in a topic name.
    #[error("`{0}` may not be in a topic name: Kafka allows letters, digits, `.`, `_` and `-`")]
    Character(char),
    /// An empty template.
    #[error("the template is empty")]
    Empty,
    /// All topics of the template are reserved.
    #[error(
        "`{0}` is reserved: topics `__*` belong to Kafka, topics `tidings.position.*` to relays"
    )]
    Reserved(String),
}

/// Returns the reason why no event can be published to a topic of this name. Returns `None` if the
/// name is usable.
///
/// Every topic is checked before its first event: the row's own, the result of the template or the
/// rewrite rule, and dead letter topics. A refused name is never remembered.
pub(crate) fn unusable(topic: &str) -> Option<String> {
    if check_topic_name(topic).is_err() {
        return Some(format!(
            "`{topic}` is not a valid topic name; change the topic template"
        ));
    }
    is_reserved_topic(topic).then(|| {
        format!(
            "topic `{topic}` is reserved: topics `__*` belong to Kafka, topics \
             `tidings.position.*` to relays; correct the row's topic or aggregatetype, or the \
             topic template"
        )
    })
}

impl TopicTemplate {
    /// Parses a template.
    ///
    /// # Errors
    ///
    /// Returns an error if the template is empty, has an unknown placeholder, an unmatched brace or
    /// a character that topic names may not contain, or if it yields only reserved topics.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let plain = rest.find(['{', '}']).unwrap_or(rest.len());
            if let Some(wrong) = rest[..plain].chars().find(|c| !is_topic_character(*c)) {
                return Err(TemplateError::Character(wrong));
            }
            if plain > 0 {
                parts.push(Part::Text(rest[..plain].to_owned()));
            }
            rest = &rest[plain..];
            if rest.is_empty() {
                break;
            }
            let (name, after) = rest
                .strip_prefix('{')
                .and_then(|rest| rest.split_once('}'))
                .ok_or(TemplateError::Brace)?;
            parts.push(match name {
                "aggregatetype" => Part::AggregateType,
                "type" => Part::EventType,
                _ => return Err(TemplateError::Placeholder(name.to_owned())),
            });
            rest = after;
        }
        match parts.first() {
            None => Err(TemplateError::Empty),
            Some(Part::Text(start)) if is_reserved_topic(start) => {
                Err(TemplateError::Reserved(text.to_owned()))
            }
            Some(_) => Ok(Self { parts }),
        }
    }

    /// Returns the topic for this aggregate type and event type.
    fn render(&self, aggregate_type: &str, event_type: &str) -> String {
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::AggregateType => aggregate_type.to_owned(),
            Part::EventType => event_type.to_owned(),
        };
        self.parts.iter().map(text).collect()
    }

    fn uses_event_type(&self) -> bool {
        self.parts.contains(&Part::EventType)
    }
}

/// Topic of the events whose row names no topic: the result of the rewrite rule, or of the template
/// if there is none.
#[derive(Clone, Debug)]
pub(crate) struct TopicRule {
    pub(crate) template: TopicTemplate,
    pub(crate) rewrite: Option<TopicRewrite>,
}

impl TopicRule {
    /// Returns the topic for this aggregate type and event type.
    pub(crate) fn topic(&self, aggregate_type: &str, event_type: &str) -> String {
        match &self.rewrite {
            Some(rewrite) => rewrite.apply(aggregate_type),
            None => self.template.render(aggregate_type, event_type),
        }
    }

    fn uses_event_type(&self) -> bool {
        self.rewrite.is_none() && self.template.uses_event_type()
    }
}

/// A topic that was found to exist.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) topic: String,
    /// Number of partitions when the relay first used the topic. It does not follow a topic that
    /// grows, because that would move keys.
    pub(crate) partitions: i32,
    /// State by partition and by the producer whose turn it is.
    first_contacts: Vec<[FirstContact; PRODUCERS]>,
}

/// First contact of a producer with a partition.
///
/// A broker accepts *any* sequence number as the first one from a producer that it does not have
/// state for. Suppose that a producer's first batch for a partition fails temporarily (a new topic,
/// a new leader) while the second, sent directly behind it, succeeds. The broker then answers the
/// retry of the first one as a duplicate: it is acknowledged and lost (KAFKA-15591, not fixed in
/// 4.3). This was observed with new topics: one event per partition was lost in one of three runs.
/// Therefore nothing is sent behind a partition's first record before that record is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstContact {
    None,
    /// The first record is in flight with this tag.
    Tried(u64),
    Made,
}

impl Route {
    /// Returns `true` if the producer `turn` may send a record to `partition`. All tags below
    /// `durable` are acknowledged.
    pub(crate) fn may_send(
        &mut self,
        partition: i32,
        turn: usize,
        durable: impl FnOnce() -> u64,
    ) -> bool {
        let Some(contact) = self.contact(partition, turn) else {
            return true;
        };
        if let FirstContact::Tried(tag) = *contact {
            if durable() <= tag {
                return false;
            }
            *contact = FirstContact::Made;
        }
        true
    }

    /// Records that the producer `turn` has sent a record with `tag` to `partition`.
    pub(crate) fn sent(&mut self, partition: i32, turn: usize, tag: u64) {
        if let Some(contact @ FirstContact::None) = self.contact(partition, turn) {
            *contact = FirstContact::Tried(tag);
        }
    }

    fn contact(&mut self, partition: i32, turn: usize) -> Option<&mut FirstContact> {
        self.first_contacts
            .get_mut(partition as usize)?
            .get_mut(turn)
    }
}

/// A topic whose partitions must be looked up before an event can be sent to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("topic `{0}` has not been looked up")]
pub(crate) struct NotLookedUp(pub(crate) String);

/// The topics used so far. Finding one needs no allocation.
pub(crate) struct Routes {
    rule: TopicRule,
    by_event: HashMap<String, HashMap<String, usize>>,
    by_topic: HashMap<String, usize>,
    routes: Vec<Route>,
}

/// Maximum number of remembered pairs of aggregate type and event type. Bounds the memory if ids
/// are used as types by mistake.
const REMEMBERED_PAIRS_MAX: usize = 10_000;

impl Routes {
    /// Creates routes that use the rewrite rule, or the template if there is none.
    pub(crate) fn new(template: TopicTemplate, rewrite: Option<TopicRewrite>) -> Self {
        Self {
            rule: TopicRule { template, rewrite },
            by_event: HashMap::new(),
            by_topic: HashMap::new(),
            routes: Vec::new(),
        }
    }

    /// Returns the event's route and its number.
    ///
    /// # Errors
    ///
    /// Returns [`NotLookedUp`] if the topic was not used before.
    pub(crate) fn find(
        &mut self,
        event: &Outgoing<'_>,
    ) -> Result<(usize, &mut Route), NotLookedUp> {
        let at = match event.topic {
            Some(topic) => self
                .by_topic
                .get(topic)
                .copied()
                .ok_or_else(|| NotLookedUp(topic.to_owned()))?,
            None => self.find_by_template(event)?,
        };
        Ok((at, &mut self.routes[at]))
    }

    /// Returns the topic of the event, whether it was used before or not.
    pub(crate) fn topic_of(&mut self, event: &Outgoing<'_>) -> String {
        match self.find(event) {
            Ok((_, route)) => route.topic.clone(),
            Err(NotLookedUp(topic)) => topic,
        }
    }

    /// Returns the route of this topic and its number, if the topic was used before.
    pub(crate) fn named(&mut self, topic: &str) -> Option<(usize, &mut Route)> {
        let at = *self.by_topic.get(topic)?;
        Some((at, &mut self.routes[at]))
    }

    fn find_by_template(&mut self, event: &Outgoing<'_>) -> Result<usize, NotLookedUp> {
        let event_type = if self.rule.uses_event_type() {
            event.event_type
        } else {
            ""
        };
        if let Some(at) = self
            .by_event
            .get(event.aggregate_type)
            .and_then(|types| types.get(event_type))
        {
            return Ok(*at);
        }
        let topic = self.rule.topic(event.aggregate_type, event_type);
        let Some(&at) = self.by_topic.get(&topic) else {
            return Err(NotLookedUp(topic));
        };
        if self.by_event.values().map(HashMap::len).sum::<usize>() >= REMEMBERED_PAIRS_MAX {
            self.by_event.clear();
        }
        self.by_event
            .entry(event.aggregate_type.to_owned())
            .or_default()
            .insert(event_type.to_owned(), at);
        Ok(at)
    }

    /// Adds a topic that was looked up.
    pub(crate) fn learn(&mut self, topic: String, partitions: i32) {
        self.by_topic.entry(topic.clone()).or_insert_with(|| {
            let first_contacts =
                vec![[FirstContact::None; PRODUCERS]; usize::try_from(partitions).unwrap_or(0)];
            self.routes.push(Route {
                topic,
                partitions,
                first_contacts,
            });
            self.routes.len() - 1
        });
    }

    /// Returns all topics used so far.
    pub(crate) fn all(&self) -> &[Route] {
        &self.routes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Value;

    fn event<'a>(
        aggregate_type: &'a str,
        event_type: &'a str,
        topic: Option<&'a str>,
    ) -> Outgoing<'a> {
        let (id, value) = (uuid::Uuid::nil(), Value::Tombstone);
        Outgoing {
            id,
            aggregate_type,
            aggregate_id: "1",
            event_type,
            version: 1,
            value,
            headers: "{}",
            occurred_at: 0,
            topic,
        }
    }

    #[test]
    fn templates_say_what_is_wrong_with_them() {
        assert_eq!(
            TopicTemplate::parse("{aggregate}"),
            Err(TemplateError::Placeholder("aggregate".into()))
        );
        assert_eq!(TopicTemplate::parse("a{type"), Err(TemplateError::Brace));
        assert_eq!(TopicTemplate::parse("type}"), Err(TemplateError::Brace));
        assert_eq!(
            TopicTemplate::parse("a b"),
            Err(TemplateError::Character(' '))
        );
        assert_eq!(TopicTemplate::parse(""), Err(TemplateError::Empty));
    }

    #[test]
    fn nothing_is_sent_behind_the_first_record_of_a_partition_before_it_is_acknowledged() {
        let mut routes = Routes::new(TopicTemplate::parse("t").expect("a template"), None);
        routes.learn("t".into(), 2);
        let placed = event("order", "Placed", None);
        let (_, route) = routes.find(&placed).expect("known");
        assert!(route.may_send(0, 0, || 0));
        route.sent(0, 0, 7);
        assert!(!route.may_send(0, 0, || 7) && route.may_send(1, 0, || 7));
        assert!(route.may_send(0, 0, || 8));
        route.sent(0, 0, 9);
        assert!(route.may_send(0, 0, || 8));
        // Each producer has its own first record.
        route.sent(0, 1, 10);
        assert!(!route.may_send(0, 1, || 10) && route.may_send(0, 0, || 10));
    }

    #[test]
    fn no_row_template_or_rewriting_leads_to_a_reserved_topic() {
        for name in ["__consumer_offsets", "tidings.position.other.0123abcd"] {
            assert!(
                unusable(name).is_some_and(|reason| reason.contains("reserved")),
                "{name}"
            );
        }
        assert_eq!((unusable("order"), unusable("tidings.order")), (None, None));
        assert!(unusable("or der").is_some_and(|reason| reason.contains("not a valid topic name")));
        for template in ["__{type}", "tidings.position.{aggregatetype}.0123abcd"] {
            assert_eq!(
                TopicTemplate::parse(template),
                Err(TemplateError::Reserved(template.into()))
            );
        }
        // Names that the columns complete are checked with the event.
        let mut routes = Routes::new(
            TopicTemplate::parse("tidings.{aggregatetype}").expect("a template"),
            None,
        );
        let routed = routes
            .find(&event("position.x.0123abcd", "T", None))
            .map(|_| ())
            .expect_err("not met");
        assert!(unusable(&routed.0).is_some());
        let rewrite = TopicRewrite::parse("(.*)", "tidings.position.$1").expect("a rewriting");
        let mut routes = Routes::new(
            TopicTemplate::parse("{type}").expect("a template"),
            Some(rewrite),
        );
        let routed = routes
            .find(&event("x.0123abcd", "T", None))
            .map(|_| ())
            .expect_err("not met");
        assert!(unusable(&routed.0).is_some());
    }

    #[test]
    fn an_event_finds_its_topic_once_the_topic_is_known() {
        let mut routes = Routes::new(
            TopicTemplate::parse("outbox.{aggregatetype}.{type}").expect("a template"),
            None,
        );
        let placed = event("order", "Placed", None);
        assert_eq!(
            routes.find(&placed).map(|_| ()),
            Err(NotLookedUp("outbox.order.Placed".into()))
        );
        routes.learn("outbox.order.Placed".into(), 3);
        assert_eq!(routes.find(&placed).expect("known").1.partitions, 3);
        assert_eq!(
            routes.find(&event("order", "Paid", None)).map(|_| ()),
            Err(NotLookedUp("outbox.order.Paid".into()))
        );
        assert_eq!(
            routes
                .find(&event("order", "Placed", Some("own")))
                .map(|_| ()),
            Err(NotLookedUp("own".into()))
        );
    }
}
