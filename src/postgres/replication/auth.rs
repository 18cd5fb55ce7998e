//! Password authentication: clear text, MD5 and SCRAM-SHA-256 (RFC 5802, without channel binding).

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};

use super::{ReplicationError, connection::Wire};

/// Answers the server's authentication requests until it is content.
pub(super) async fn authenticate(wire: &mut Wire, user: &str, password: Option<&str>) -> Result<(), ReplicationError> {
    loop {
        match wire.message().await? {
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationCleartextPassword => send_password(wire, required(password)?.as_bytes()).await?,
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(user.as_bytes(), required(password)?.as_bytes(), body.salt());
                send_password(wire, hash.as_bytes()).await?;
            }
            Message::AuthenticationSasl(body) => scram(wire, &body, required(password)?).await?,
            Message::ErrorResponse(body) => return Err(ReplicationError::from_response(&body)),
            _ => return Err(ReplicationError::Auth("the server asks for a method that is not supported (GSSAPI, SSPI)".into())),
        }
    }
}

fn required(password: Option<&str>) -> Result<&str, ReplicationError> {
    password.ok_or_else(|| ReplicationError::Auth("the server asks for a password: put it into the database URL or set PGPASSWORD".into()))
}

async fn send_password(wire: &mut Wire, password: &[u8]) -> Result<(), ReplicationError> {
    let mut out = BytesMut::new();
    frontend::password_message(password, &mut out)?;
    wire.send(&out).await
}

async fn scram(wire: &mut Wire, offer: &AuthenticationSaslBody, password: &str) -> Result<(), ReplicationError> {
    if !offer.mechanisms().any(|mechanism| Ok(mechanism == SCRAM_SHA_256))? {
        return Err(ReplicationError::Auth("the server offers no SCRAM-SHA-256".into()));
    }
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    let mut out = BytesMut::new();
    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out)?;
    wire.send(&out).await?;
    match wire.message().await? {
        Message::AuthenticationSaslContinue(body) => scram.update(body.data())?,
        Message::ErrorResponse(body) => return Err(ReplicationError::from_response(&body)),
        _ => return Err(ReplicationError::Auth("the server broke off the SCRAM exchange".into())),
    }
    out.clear();
    frontend::sasl_response(scram.message(), &mut out)?;
    wire.send(&out).await?;
    match wire.message().await? {
        Message::AuthenticationSaslFinal(body) => Ok(scram.finish(body.data())?),
        Message::ErrorResponse(body) => Err(ReplicationError::from_response(&body)),
        _ => Err(ReplicationError::Auth("the server broke off the SCRAM exchange".into())),
    }
}
