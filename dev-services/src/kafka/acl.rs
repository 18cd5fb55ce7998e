//! Access-control entries of a broker with an authorizer. They are sent in Kafka's own protocol,
//! because rdkafka does not offer librdkafka's calls for them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::Error;

/// API keys of `CreateAcls` and `DeleteAcls`, both used in version 1.
const CREATE: i16 = 30;
const DELETE: i16 = 31;

/// A running broker responds within this time.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Resource types with their protocol numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AclResource {
    /// A topic.
    Topic = 2,
    /// A consumer group.
    Group = 3,
    /// A transactional id.
    TransactionalId = 5,
}

/// Operations with their protocol numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AclOperation {
    /// Every operation.
    All = 2,
    /// Read.
    Read = 3,
    /// Write.
    Write = 4,
    /// Create.
    Create = 5,
    /// Describe. Read and write include it.
    Describe = 8,
    /// Read the settings of a topic or a broker.
    DescribeConfigs = 10,
}

/// An entry that allows or denies a principal an operation on a resource, from any host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// The type of the resource.
    pub resource: AclResource,
    /// The name of the resource, or a prefix of it.
    pub name: String,
    /// `true` if `name` is a prefix.
    pub prefixed: bool,
    /// The principal, for example `User:relay`. `User:*` matches everyone.
    pub principal: String,
    /// The operation.
    pub operation: AclOperation,
    /// `true` to allow, `false` to deny. A denial takes precedence.
    pub allow: bool,
}

impl Acl {
    /// Adds the entry to the broker at `address`.
    ///
    /// # Errors
    ///
    /// Returns an error if the broker does not respond or refuses.
    pub(super) fn create(&self, address: SocketAddr) -> Result<(), Error> {
        self.request(address, CREATE)
    }

    /// Removes the entry from the broker at `address`.
    ///
    /// # Errors
    ///
    /// Returns an error if the broker does not respond or refuses.
    pub(super) fn delete(&self, address: SocketAddr) -> Result<(), Error> {
        self.request(address, DELETE)
    }

    fn request(&self, address: SocketAddr, api: i16) -> Result<(), Error> {
        let exchange = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(ANSWER_LIMIT))?;
            stream.write_all(&self.encode(api))?;
            let mut size = [0; 4];
            stream.read_exact(&mut size)?;
            let mut answer = vec![0; u32::from_be_bytes(size) as usize];
            stream.read_exact(&mut answer)?;
            // Correlation id, throttle time, number of results, error code of the first result.
            Ok(answer.get(8..14) == Some(&[0, 0, 0, 1, 0, 0]))
        };
        match exchange() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::system("change an access-control entry")(
                std::io::Error::other(format!("{self:?}")),
            )),
            Err(error) => Err(Error::system("change an access-control entry")(error)),
        }
    }

    fn encode(&self, api: i16) -> Vec<u8> {
        let permission = if self.allow { 3 } else { 2 };
        let body = [
            [api.to_be_bytes(), 1i16.to_be_bytes()].concat(),
            7i32.to_be_bytes().to_vec(),
            text("test"),
            1i32.to_be_bytes().to_vec(),
            vec![self.resource as u8],
            text(&self.name),
            vec![if self.prefixed { 4 } else { 3 }],
            text(&self.principal),
            text("*"),
            vec![self.operation as u8, permission],
        ]
        .concat();
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        [size.to_be_bytes().to_vec(), body].concat()
    }
}

/// Encodes a string: its length in two bytes, then its bytes.
fn text(text: &str) -> Vec<u8> {
    let size = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [&size.to_be_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_encoded_as_the_protocol_describes() {
        let acl = Acl {
            resource: AclResource::Topic,
            name: "t".into(),
            prefixed: false,
            principal: "User:a".into(),
            operation: AclOperation::Write,
            allow: false,
        };
        let bytes = acl.encode(CREATE);
        assert_eq!(
            bytes[..4],
            u32::try_from(bytes.len() - 4).expect("short").to_be_bytes()
        );
        assert!(
            bytes.ends_with(b"\x02\x00\x01t\x03\x00\x06User:a\x00\x01*\x04\x02"),
            "{bytes:?}"
        );
    }
}
