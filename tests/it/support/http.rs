//! A minimal HTTP client for tests.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

/// Sends a request and returns the status and body of the response.
pub(crate) fn ask(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\n"
    );
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len())
        .expect("the request is sent");
    let (mut answer, mut head) = (BufReader::new(stream), String::new());
    // The head ends with an empty line.
    while answer.read_line(&mut head).expect("the server answers") > 2 {}
    let named = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    // Some servers keep the connection open in spite of `connection: close`.
    let length = named.map_or(u64::MAX, |(_, length)| {
        length.trim().parse().expect("a length")
    });
    let mut body = String::new();
    answer
        .take(length)
        .read_to_string(&mut body)
        .expect("the server answers");
    (head[9..12].parse().expect("a status"), body)
}
