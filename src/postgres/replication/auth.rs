//! Password authentication with clear text, MD5, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802),
//! as far as the settings allow it.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};

use super::{ReplicationError, dial::Channel, wire::Wire};
use crate::postgres::{
    DatabaseSettings,
    settings::{ChannelBinding, Method},
};

/// Responds to the server's authentication requests until it accepts the connection. Returns the
/// method that the server used.
///
/// # Errors
///
/// Returns the server's error, or an error if the settings exclude a request. No response to an
/// excluded request is sent.
pub(super) async fn authenticate(
    wire: &mut Wire,
    settings: &DatabaseSettings,
    channel: &Channel,
) -> Result<Method, ReplicationError> {
    let mut used = Method::None;
    loop {
        match wire.message().await? {
            Message::AuthenticationOk => {
                permit(settings, used)?;
                return Ok(used);
            }
            Message::AuthenticationCleartextPassword => {
                used = Method::Password;
                permit(settings, used)?;
                send_password(wire, password(settings)?.as_bytes()).await?;
            }
            Message::AuthenticationMd5Password(body) => {
                used = Method::Md5;
                permit(settings, used)?;
                let hash = md5_hash(
                    settings.user().as_bytes(),
                    password(settings)?.as_bytes(),
                    body.salt(),
                );
                send_password(wire, hash.as_bytes()).await?;
            }
            Message::AuthenticationSasl(body) => {
                let plus = chooses_plus(&body, settings, channel)?;
                used = if plus {
                    Method::ScramPlus
                } else {
                    Method::Scram
                };
                permit(settings, used)?;
                scram(
                    wire,
                    binding(plus, settings, channel),
                    plus,
                    password(settings)?,
                )
                .await?;
            }
            Message::ErrorResponse(body) => return Err(ReplicationError::from_response(&body)),
            _ => {
                return Err(ReplicationError::Auth(
                    "the server requests a method that is not supported (GSSAPI, SSPI)".into(),
                ));
            }
        }
    }
}

/// Refuses a method that the settings exclude.
fn permit(settings: &DatabaseSettings, method: Method) -> Result<(), ReplicationError> {
    let refused = |why: String| Err(ReplicationError::Auth(why));
    let asks = match method {
        Method::None => "accepts the role without authentication",
        Method::Password => "requests the password in clear text",
        Method::Md5 => "requests an MD5 hash of the password",
        Method::Scram | Method::ScramPlus => "requests SCRAM-SHA-256",
    };
    if !settings.require_auth().accepts(method) {
        return refused(format!(
            "the server {asks}, and require_auth accepts {} only: nothing was sent",
            settings.require_auth().list()
        ));
    }
    if settings.channel_binding() == ChannelBinding::Require && method != Method::ScramPlus {
        return refused(format!(
            "the server {asks} without channel binding, which channel_binding=require demands: the \
             server is not the endpoint of the TLS connection, its role has no SCRAM password \
             (password_encryption = scram-sha-256), or the signature of its certificate has no \
             hash (Ed25519)"
        ));
    }
    Ok(())
}

/// Returns `true` if SCRAM is bound to the TLS channel.
fn chooses_plus(
    offer: &AuthenticationSaslBody,
    settings: &DatabaseSettings,
    channel: &Channel,
) -> Result<bool, ReplicationError> {
    let (mut plain, mut plus) = (false, false);
    let mut mechanisms = offer.mechanisms();
    while let Some(mechanism) = mechanisms.next()? {
        plain |= mechanism == SCRAM_SHA_256;
        plus |= mechanism == SCRAM_SHA_256_PLUS;
    }
    if plus && !channel.encrypted {
        return Err(ReplicationError::Auth(
            "the server offers channel binding on a connection without TLS".into(),
        ));
    }
    if plus && channel.binding.is_some() && settings.channel_binding() != ChannelBinding::Disable {
        return Ok(true);
    }
    if plain {
        Ok(false)
    } else {
        Err(ReplicationError::Auth(
            "the server does not offer SCRAM-SHA-256".into(),
        ))
    }
}

/// Returns the flag of the SCRAM exchange for channel binding: it is used, the server did not offer
/// it although the client supports it, or the client does not support it.
fn binding(plus: bool, settings: &DatabaseSettings, channel: &Channel) -> sasl::ChannelBinding {
    match &channel.binding {
        Some(hash) if plus => sasl::ChannelBinding::tls_server_end_point(hash.clone()),
        Some(_) if settings.channel_binding() != ChannelBinding::Disable => {
            sasl::ChannelBinding::unrequested()
        }
        _ => sasl::ChannelBinding::unsupported(),
    }
}

fn password(settings: &DatabaseSettings) -> Result<&str, ReplicationError> {
    settings.password().ok_or_else(|| {
        ReplicationError::Auth(
            "the server requests a password: put it into the database URL or a password file, or \
             set PGPASSWORD"
                .into(),
        )
    })
}

async fn send_password(wire: &mut Wire, password: &[u8]) -> Result<(), ReplicationError> {
    let mut out = BytesMut::new();
    frontend::password_message(password, &mut out)?;
    wire.send(&out).await
}

async fn scram(
    wire: &mut Wire,
    binding: sasl::ChannelBinding,
    plus: bool,
    password: &str,
) -> Result<(), ReplicationError> {
    // The library limits the number of iterations that a server may request.
    let mut scram = ScramSha256::new(password.as_bytes(), binding);
    let mut out = BytesMut::new();
    frontend::sasl_initial_response(
        if plus {
            SCRAM_SHA_256_PLUS
        } else {
            SCRAM_SHA_256
        },
        scram.message(),
        &mut out,
    )?;
    wire.send(&out).await?;
    match wire.message().await? {
        Message::AuthenticationSaslContinue(body) => scram.update(body.data())?,
        Message::ErrorResponse(body) => return Err(ReplicationError::from_response(&body)),
        _ => {
            return Err(ReplicationError::Protocol(
                "the server aborted the SCRAM exchange".into(),
            ));
        }
    }
    out.clear();
    frontend::sasl_response(scram.message(), &mut out)?;
    wire.send(&out).await?;
    match wire.message().await? {
        Message::AuthenticationSaslFinal(body) => Ok(scram.finish(body.data())?),
        Message::ErrorResponse(body) => Err(ReplicationError::from_response(&body)),
        _ => Err(ReplicationError::Protocol(
            "the server aborted the SCRAM exchange".into(),
        )),
    }
}
