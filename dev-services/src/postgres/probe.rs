use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use super::session;
use crate::proxy::local;

const LIMIT: Duration = Duration::from_secs(1);

/// Returns `true` if the user `postgres` can open a session in the server with this data folder.
/// A server that is starting or recovering accepts the connection and then refuses the session.
/// Another server may have taken the port.
pub(crate) fn answers(port: u16, data_folder: &Path) -> bool {
    let opens = || ask(port).is_ok_and(|first| first == b'R');
    let folder = || session::ask(port, "show data_directory").ok().flatten();
    opens() && folder().is_some_and(|folder| Path::new(&folder) == data_folder)
}

/// Sends a startup message (Postgres manual, "Message Formats") and returns the type of the
/// response.
///
/// `R` is an authentication request, or the confirmation that none is needed. `E` is an error.
fn ask(port: u16) -> std::io::Result<u8> {
    let mut connection = TcpStream::connect_timeout(&local(port), LIMIT)?;
    connection.set_read_timeout(Some(LIMIT))?;
    let parameters = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let mut message = (parameters.len() as u32 + 4).to_be_bytes().to_vec();
    message.extend_from_slice(parameters);
    connection.write_all(&message)?;
    let mut first = [0];
    connection.read_exact(&mut first)?;
    // Terminates the session, so that the server does not log an unexpected end.
    let _ = connection.write_all(b"X\0\0\0\x04");
    Ok(first[0])
}
