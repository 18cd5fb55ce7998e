use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::proxy::local;

/// A new broker takes about 100 ms to create its internal topics.
const LIMIT: Duration = Duration::from_secs(5);

/// Returns `true` if a broker of the cluster responds and has coordinators for groups and
/// transactions. A broker of another cluster may have taken the port.
///
/// The request makes the broker create `__consumer_offsets` and `__transaction_state`. Otherwise
/// the first consumer and the first transaction would wait seconds for them.
pub(super) fn answers(port: u16, cluster: &str) -> bool {
    const GROUP: u8 = 0;
    const TRANSACTION: u8 = 1;
    let connect = || TcpStream::connect_timeout(&local(port), LIMIT);
    let ask_all = |mut broker: TcpStream| {
        broker.set_read_timeout(Some(LIMIT))?;
        if !belongs_to(&mut broker, cluster)? {
            return Ok(false);
        }
        // Sends both requests regardless of the first error code, so that both topics are created
        // at the same time.
        let errors = [
            find_coordinator(&mut broker, GROUP)?,
            find_coordinator(&mut broker, TRANSACTION)?,
        ];
        Ok::<_, std::io::Error>(errors == [0, 0])
    };
    connect().and_then(ask_all).is_ok_and(|answers| answers)
}

/// Sends Metadata, version 2, about no topic and compares the cluster's id.
fn belongs_to(broker: &mut TcpStream, cluster: &str) -> std::io::Result<bool> {
    // API key 3, version 2, correlation id, no client id, an empty list of topics.
    let answer = ask(broker, &[0, 3, 0, 2, 0, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0])?;
    // The id is random, so it occurs nowhere else in the response.
    Ok(answer
        .windows(cluster.len())
        .any(|bytes| bytes == cluster.as_bytes()))
}

/// Sends FindCoordinator, version 1 (Kafka protocol guide), and returns the error code of the
/// response.
fn find_coordinator(broker: &mut TcpStream, kind: u8) -> std::io::Result<i16> {
    // API key 10, version 1, correlation id, no client id, the key "dev", the coordinator type.
    let request = [
        &[0, 10, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0, 3][..],
        b"dev",
        &[kind],
    ]
    .concat();
    let answer = ask(broker, &request)?;
    // Correlation id and throttle time precede the error code.
    answer
        .get(8..10)
        .map(|code| i16::from_be_bytes([code[0], code[1]]))
        .ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// Sends a request and returns the response without its length.
fn ask(broker: &mut TcpStream, request: &[u8]) -> std::io::Result<Vec<u8>> {
    broker.write_all(&(request.len() as u32).to_be_bytes())?;
    broker.write_all(request)?;
    let mut length = [0; 4];
    broker.read_exact(&mut length)?;
    let mut answer = vec![0; (u32::from_be_bytes(length) as usize).min(1 << 16)];
    broker.read_exact(&mut answer)?;
    Ok(answer)
}
