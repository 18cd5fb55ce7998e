//! Names that an operator writes: `ID` of an event, `TYPE/ID` of an aggregate.

use uuid::Uuid;

use crate::escape::escaped;

/// A named event or aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Event(Uuid),
    Aggregate(String, String),
}

/// A text names neither an event nor an aggregate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is neither an event id nor an aggregate\n  \
     -> write a UUID, or TYPE/ID, for instance order/17",
    escaped(.0)
)]
pub(crate) struct NameError(String);

/// A text does not name an aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write the type and the id of the aggregate, order/7")]
pub(crate) struct AggregateError;

/// Parses the id of an event, or an aggregate as `TYPE/ID`.
///
/// # Errors
///
/// Returns [`NameError`] for any other text.
pub(crate) fn named(text: &str) -> Result<Named, NameError> {
    if let Ok(id) = text.parse() {
        return Ok(Named::Event(id));
    }
    let (kind, id) = aggregate(text).map_err(|_| NameError(text.to_owned()))?;
    Ok(Named::Aggregate(kind, id))
}

/// Parses `TYPE/ID`. A type has no slash; an id may have one.
///
/// # Errors
///
/// Returns [`AggregateError`] for a text without a slash, a type or an id.
pub(crate) fn aggregate(text: &str) -> Result<(String, String), AggregateError> {
    let parts = text.split_once('/');
    let (kind, id) = parts
        .filter(|(kind, id)| !kind.is_empty() && !id.is_empty())
        .ok_or(AggregateError)?;
    Ok((kind.to_owned(), id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_uuid_and_an_aggregate_a_type_and_an_id() {
        let id = Uuid::now_v7();
        assert_eq!(named(&id.to_string()), Ok(Named::Event(id)));
        let aggregate_of = |kind: &str, id: &str| Named::Aggregate(kind.into(), id.into());
        assert_eq!(
            named(&format!("order/{id}")),
            Ok(aggregate_of("order", &id.to_string()))
        );
        assert_eq!(named("order/a/b"), Ok(aggregate_of("order", "a/b")));
        for wrong in ["order", "/a", "order/", "/", ""] {
            assert_eq!(named(wrong), Err(NameError(wrong.into())), "{wrong}");
            assert_eq!(aggregate(wrong), Err(AggregateError), "{wrong}");
        }
        assert_eq!(
            aggregate(&format!("order/{id}")),
            Ok(("order".into(), id.to_string()))
        );
        assert!(aggregate(&id.to_string()).is_err());
    }
}
