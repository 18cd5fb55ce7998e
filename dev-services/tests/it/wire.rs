//! Minimal clients of both protocols, which verify that a server responds and still has its data.

use std::io::{Read, Result, Write};
use std::net::TcpStream;
use std::time::Duration;

fn connect(port: u16) -> Result<TcpStream> {
    let connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(connection)
}

/// Runs one statement in a separate session. Returns `true` if it succeeded.
pub(crate) fn sql(port: u16, statement: &str) -> Result<bool> {
    query(&mut session(port)?, statement)
}

/// Opens a session with Postgres.
pub(crate) fn session(port: u16) -> Result<TcpStream> {
    let mut server = connect(port)?;
    let startup = b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    server.write_all(startup)?;
    assert!(until_ready(&mut server)?, "the session is opened");
    Ok(server)
}

/// Runs one statement with the simple protocol. Returns `true` if it succeeded.
pub(crate) fn query(server: &mut TcpStream, statement: &str) -> Result<bool> {
    let mut query = vec![b'Q'];
    query.extend((statement.len() as u32 + 5).to_be_bytes());
    query.extend(statement.as_bytes());
    query.push(0);
    server.write_all(&query)?;
    until_ready(server)
}

/// Reads messages until the server is ready for a query. Returns `false` if one of them was an
/// error.
pub(crate) fn until_ready(server: &mut TcpStream) -> Result<bool> {
    let mut no_error = true;
    loop {
        let mut head = [0; 5];
        server.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) - 4;
        std::io::copy(
            &mut (&*server).take(u64::from(length)),
            &mut std::io::sink(),
        )?;
        no_error &= head[0] != b'E';
        if head[0] == b'Z' {
            return Ok(no_error);
        }
    }
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u16).to_be_bytes()[..], value.as_bytes()].concat()
}

fn kafka(port: u16, api_key: u8, version: u8, body: &[u8]) -> Result<Vec<u8>> {
    let mut broker = connect(port)?;
    let request = [&[0, api_key, 0, version, 0, 0, 0, 7, 0xff, 0xff], body].concat();
    broker.write_all(&[&(request.len() as u32).to_be_bytes()[..], &request].concat())?;
    let mut length = [0; 4];
    broker.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    broker.read_exact(&mut answer)?;
    assert_eq!(
        answer[..4],
        [0, 0, 0, 7],
        "the answer carries the request's correlation id"
    );
    Ok(answer.split_off(4))
}

/// Sends CreateTopics, version 2, with one partition, and returns the error code.
pub(crate) fn create_topic(port: u16, topic: &str) -> Result<i16> {
    create_replicated_topic(port, topic, 1)
}

/// Does the same with several replicas.
pub(crate) fn create_replicated_topic(port: u16, topic: &str, replicas: u8) -> Result<i16> {
    let one = [0, 0, 0, 1];
    let (no_assignments, no_configs, timeout) = ([0; 4], [0; 4], [0, 0, 0x27, 0x10]);
    let body = [
        &one[..],
        &text(topic),
        &one,
        &[0, replicas],
        &no_assignments,
        &no_configs,
        &timeout,
        &[0],
    ]
    .concat();
    let answer = kafka(port, 19, 2, &body)?;
    // Throttle time, number of topics, name.
    let code = 4 + 4 + 2 + topic.len();
    Ok(i16::from_be_bytes([answer[code], answer[code + 1]]))
}

/// Returns the number of partitions of a topic from Metadata, version 1, or `None` if the broker
/// does not have it.
pub(crate) fn partitions(port: u16, topic: &str) -> Result<Option<u32>> {
    let answer = kafka(port, 3, 1, &[&[0, 0, 0, 1][..], &text(topic)].concat())?;
    let at = answer
        .windows(topic.len())
        .rposition(|window| window == topic.as_bytes())
        .expect("the answer names the topic");
    let (error, after) = (&answer[at - 4..at - 2], &answer[at + topic.len() + 1..]);
    Ok((error == [0, 0]).then(|| u32::from_be_bytes([after[0], after[1], after[2], after[3]])))
}

/// Waits until the broker itself has the metadata of a topic that its controller has created.
pub(crate) fn wait_for_topic(port: u16, topic: &str) {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while partitions(port, topic).expect("Kafka answers").is_none() {
        assert!(std::time::Instant::now() < until, "{topic} does not appear");
        std::thread::sleep(Duration::from_millis(5));
    }
}
