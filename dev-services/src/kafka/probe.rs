use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A new broker takes about 100 ms to create its internal topics.
const LIMIT: Duration = Duration::from_secs(5);

/// Returns `true` if the broker responds and has coordinators for groups and transactions.
///
/// The request makes the broker create `__consumer_offsets` and `__transaction_state`. Otherwise
/// the first consumer and the first transaction would wait seconds for them.
pub(super) fn answers(port: u16) -> bool {
    const GROUP: u8 = 0;
    const TRANSACTION: u8 = 1;
    let connect = || TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), LIMIT);
    let ask_both = |mut broker: TcpStream| {
        broker.set_read_timeout(Some(LIMIT))?;
        // Sends both requests regardless of the first error code, so that both topics are created
        // at the same time.
        Ok::<_, std::io::Error>([
            find_coordinator(&mut broker, GROUP)?,
            find_coordinator(&mut broker, TRANSACTION)?,
        ])
    };
    connect()
        .and_then(ask_both)
        .is_ok_and(|errors| errors == [0, 0])
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
    broker.write_all(&(request.len() as u32).to_be_bytes())?;
    broker.write_all(&request)?;
    let mut length = [0; 4];
    broker.read_exact(&mut length)?;
    let mut answer = vec![0; (u32::from_be_bytes(length) as usize).min(1 << 16)];
    broker.read_exact(&mut answer)?;
    // Correlation id and throttle time precede the error code.
    answer
        .get(8..10)
        .map(|code| i16::from_be_bytes([code[0], code[1]]))
        .ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}
