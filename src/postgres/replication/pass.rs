//! A session of the [gateway](crate::postgres::gateway). Forwards the client's startup message,
//! authenticates to the server, and then copies all bytes.

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::UnixStream,
};

use super::{
    ReplicationError,
    dial::{Dialled, dial},
    framing::HANDSHAKE_BYTES_MAX,
};
use crate::postgres::{DatabaseSettings, certificate, errors::with_causes};

/// AuthenticationOk.
const ACCEPTED: &[u8] = b"R\0\0\0\x08\0\0\0\0";

/// connection_exception: may be temporary.
const CONNECTION_FAILED: &str = "08001";

/// sqlserver_rejected_establishment_of_sqlconnection: the server or its certificate does not meet
/// the settings.
const REFUSED: &str = "08004";

/// Opens a connection with these settings for one client and copies until either side closes.
pub(crate) async fn relay_session(settings: &DatabaseSettings, mut client: UnixStream) {
    let Ok(startup) = startup(&mut client).await else {
        return;
    };
    match dial(settings, &startup).await {
        Ok(Dialled { wire, .. }) => {
            let (mut server, read) = wire.into_parts();
            let greeting = [ACCEPTED, &read].concat();
            if client.write_all(&greeting).await.is_ok() {
                // An error is a lost connection, which both sides detect.
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        }
        Err(error) => {
            let _ = client.write_all(&refusal(&error)).await;
        }
    }
}

/// Reads the startup message, which starts with its length.
async fn startup(client: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let len = client.read_u32().await?;
    let rest = usize::try_from(len)
        .ok()
        .filter(|len| (8..HANDSHAKE_BYTES_MAX).contains(len))
        .ok_or(std::io::ErrorKind::InvalidData)?;
    let mut message = len.to_be_bytes().to_vec();
    message.resize(rest, 0);
    client.read_exact(&mut message[4..]).await?;
    Ok(message)
}

/// Encodes the error as an error response of the server, which the client reports.
fn refusal(error: &ReplicationError) -> Vec<u8> {
    let refused = certificate::refusal(error);
    let code = match error {
        ReplicationError::Server { code, .. } => code,
        ReplicationError::Auth(_) => REFUSED,
        _ if refused.is_some_and(|refusal| !refusal.passes) => REFUSED,
        _ => CONNECTION_FAILED,
    };
    let remedy = refused
        .map(|refusal| format!("; {}", refusal.text))
        .unwrap_or_default();
    let message = format!("{}{remedy}", with_causes(error)).replace('\0', " ");
    let mut body = BytesMut::new();
    for (field, text) in [
        (b'S', "FATAL"),
        (b'V', "FATAL"),
        (b'C', code),
        (b'M', &message),
    ] {
        body.put_u8(field);
        body.put_slice(text.as_bytes());
        body.put_u8(0);
    }
    body.put_u8(0);
    let len = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&b"E"[..], &len.to_be_bytes(), &body].concat()
}
