//! Rights in Kafka that are revoked and restored.

use dev_services::{Acl, AclOperation, AclResource, Error, Kafka};

use super::topic::topics;

/// The transactional ids of the relays start with this.
const TRANSACTIONAL_IDS: &str = "tidings.relay.";

/// Entries that take one kind of right away. An entry on a resource ends the permission that a resource without
/// entries gives to everyone, so everything but the denied operation is allowed again.
pub(crate) fn denied(which: usize) -> Vec<Acl> {
    let resources: Vec<(AclResource, String)> = if which.is_multiple_of(2) {
        topics()
            .into_iter()
            .map(|topic| (AclResource::Topic, topic))
            .collect()
    } else {
        vec![(AclResource::TransactionalId, TRANSACTIONAL_IDS.to_owned())]
    };
    let entries = resources.into_iter().flat_map(|(resource, name)| {
        [(AclOperation::All, true), (AclOperation::Write, false)].map(|(operation, allow)| Acl {
            resource,
            name: name.clone(),
            prefixed: resource == AclResource::TransactionalId,
            principal: "User:*".to_owned(),
            operation,
            allow,
        })
    });
    entries.collect()
}

/// Adds the entries.
///
/// # Errors
/// When the broker does not answer or refuses.
pub(crate) fn revoke(broker: &Kafka, entries: &[Acl]) -> Result<(), Error> {
    entries.iter().try_for_each(|acl| broker.create_acl(acl))
}

/// Removes the entries.
///
/// # Errors
/// As [`revoke`].
pub(crate) fn restore(broker: &Kafka, entries: &[Acl]) -> Result<(), Error> {
    entries
        .iter()
        .rev()
        .try_for_each(|acl| broker.delete_acl(acl))
}
