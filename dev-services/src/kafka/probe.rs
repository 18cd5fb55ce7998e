use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Creating its own topics takes a new broker some 100 ms.
const LIMIT: Duration = Duration::from_secs(5);

/// Whether the broker is up and knows the coordinators of groups and of transactions. Asking makes it create `__consumer_offsets` and
/// `__transaction_state`, for which the first consumer and the first transaction would otherwise wait seconds.
pub(super) fn answers(port: u16) -> bool {
    const GROUP: u8 = 0;
    const TRANSACTION: u8 = 1;
    let connect = || TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), LIMIT);
    let ask_both = |mut broker: TcpStream| {
        broker.set_read_timeout(Some(LIMIT))?;
        // Both, before looking at either answer: the topics are then created at the same time.
        Ok::<_, std::io::Error>([
            find_coordinator(&mut broker, GROUP)?,
            find_coordinator(&mut broker, TRANSACTION)?,
        ])
    };
    connect()
        .and_then(ask_both)
        .is_ok_and(|errors| errors == [0, 0])
}

/// FindCoordinator, version 1 (Kafka protocol guide); the error code of the answer.
fn find_coordinator(broker: &mut TcpStream, kind: u8) -> std::io::Result<i16> {
    // API key 10, version 1, correlation id, no client id, the key "dev", the kind of coordinator.
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
    // Correlation id and throttle time come first.
    answer
        .get(8..10)
        .map(|code| i16::from_be_bytes([code[0], code[1]]))
        .ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}
