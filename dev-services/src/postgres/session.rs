//! A minimal client that runs statements and reads one value (Postgres manual, "Message Flow").

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::Error;
use crate::proxy::local;

const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Longer than a promotion, which is the slowest statement.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);

/// Larger than any response here.
const MESSAGE_BYTES_MAX: u32 = 1 << 20;

/// Runs statements as the superuser in a separate session. Returns the first value of the last row.
pub(super) fn ask(port: u16, statements: &str) -> Result<Option<String>, Error> {
    let doing = || format!("run `{statements}` on the Postgres at port {port}");
    exchange(port, statements)
        .map_err(Error::system(doing()))?
        .map_err(|said| Error::system(doing())(io::Error::other(said)))
}

/// Returns an inner error if the server reports one.
fn exchange(port: u16, statements: &str) -> io::Result<Result<Option<String>, String>> {
    let mut server = TcpStream::connect_timeout(&local(port), CONNECT_LIMIT)?;
    server.set_read_timeout(Some(ANSWER_LIMIT))?;
    server.write_all(b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0")?;
    if let Err(said) = until_ready(&mut server)? {
        return Ok(Err(said));
    }
    let mut query = vec![b'Q'];
    query.extend((statements.len() as u32 + 5).to_be_bytes());
    query.extend(statements.as_bytes());
    query.push(0);
    server.write_all(&query)?;
    let answer = until_ready(&mut server)?;
    // Terminates the session, so that the server does not log an unexpected end.
    let _ = server.write_all(b"X\0\0\0\x04");
    Ok(answer)
}

fn until_ready(server: &mut TcpStream) -> io::Result<Result<Option<String>, String>> {
    let (mut value, mut error) = (None, None);
    loop {
        let (kind, body) = message(server)?;
        match kind {
            b'D' => value = first_column(&body),
            b'E' => error = error.or_else(|| Some(text_of_error(&body))),
            b'Z' => return Ok(error.map_or(Ok(value), Err)),
            _ => {}
        }
        // A refused session ends without becoming ready.
        if kind == b'E' && body.starts_with(b"SFATAL") {
            return Ok(Err(error.unwrap_or_default()));
        }
    }
}

fn message(server: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    server.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let mut body = vec![0; length.saturating_sub(4).min(MESSAGE_BYTES_MAX) as usize];
    server.read_exact(&mut body)?;
    Ok((head[0], body))
}

/// Returns the first column of a DataRow. `None` is null.
fn first_column(row: &[u8]) -> Option<String> {
    let length = i32::from_be_bytes(row.get(2..6)?.try_into().ok()?);
    let bytes = row.get(6..6 + usize::try_from(length).ok()?)?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

/// Returns the field `M` of an ErrorResponse.
fn text_of_error(body: &[u8]) -> String {
    let message = body
        .split(|byte| *byte == 0)
        .find(|field| field.first() == Some(&b'M'));
    String::from_utf8_lossy(message.map_or(body, |field| &field[1..])).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_first_value_and_an_errors_text_are_found() {
        assert_eq!(
            first_column(b"\0\x02\0\0\0\x02on\xff\xff\xff\xff").as_deref(),
            Some("on")
        );
        assert_eq!(first_column(b"\0\x01\xff\xff\xff\xff"), None);
        assert_eq!(
            text_of_error(b"SERROR\0C42601\0Msyntax error\0\0"),
            "syntax error"
        );
    }
}
