//! Access-control entries of a broker with an authorizer, over Kafka's own protocol: librdkafka's
//! admin client in rdkafka has no call for them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::Error;

/// `CreateAcls` and `DeleteAcls`, both in version 1.
const CREATE: i16 = 30;
const DELETE: i16 = 31;

/// A broker that runs answers within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Kinds of resources, by their number in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclResource {
    /// A topic.
    Topic = 2,
    /// A transactional id.
    TransactionalId = 5,
}

/// Operations, by their number in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclOperation {
    /// Every operation.
    All = 2,
    /// To read.
    Read = 3,
    /// To write.
    Write = 4,
    /// To create.
    Create = 5,
}

/// One entry: it allows or denies an operation on a resource to a principal, from any host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// The kind of the resource.
    pub resource: AclResource,
    /// Its name, or what its name begins with.
    pub name: String,
    /// Whether `name` is a prefix.
    pub prefixed: bool,
    /// The principal, for example `User:relay`; `User:*` is everyone.
    pub principal: String,
    /// The operation.
    pub operation: AclOperation,
    /// Whether it is allowed or denied; a denial wins.
    pub allow: bool,
}

impl Acl {
    /// Sends the entry to the broker at `address` to be added.
    ///
    /// # Errors
    /// When the broker does not answer or refuses.
    pub(super) fn create(&self, address: SocketAddr) -> Result<(), Error> {
        self.request(address, CREATE)
    }

    /// Sends the entry to the broker at `address` to be removed.
    ///
    /// # Errors
    /// When the broker does not answer or refuses.
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
            // A request number and a throttle time, then the number of results and the first error code.
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

/// A string of the protocol: its length in two bytes, then its bytes.
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
