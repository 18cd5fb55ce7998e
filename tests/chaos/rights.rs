//! ACLs that revoke and restore rights in Kafka.

use dev_services::{Acl, AclOperation, AclResource, Error, Kafka};

use super::topic::topics;

/// The prefix of the relays' transactional ids.
const TRANSACTIONAL_IDS: &str = "tidings.relay.";

/// Returns the ACLs that revoke one kind of right. A resource without ACLs is open to everyone, and
/// its first ACL ends this. The list therefore allows all operations before it denies one.
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
///
/// Returns an error if the broker does not respond or refuses.
pub(crate) fn revoke(broker: &Kafka, entries: &[Acl]) -> Result<(), Error> {
    entries.iter().try_for_each(|acl| broker.create_acl(acl))
}

/// Removes the entries.
///
/// # Errors
///
/// Returns the errors of [`revoke`].
pub(crate) fn restore(broker: &Kafka, entries: &[Acl]) -> Result<(), Error> {
    entries
        .iter()
        .rev()
        .try_for_each(|acl| broker.delete_acl(acl))
}
