//! A server, or an intermediary, that sends bytes outside the protocol.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
};

use crate::support::history::{Verdict, with_accounts, write_concurrently};
use crate::support::running::Place;

/// Bytes sent in place of the stream, one entry per attempt.
const HOSTILE: [&[u8]; 8] = [
    b"d\0\0\0\0",
    b"d\xff\xff\xff\xffgarbage",
    b"d\x7f\xff\xff\xffgarbage",
    b"\0\0\0\0\0",
    b"E\0\0\0\x03",
    b"N\xff\xff\xff\xff",
    // Frames with a correct length and invalid content: an empty one, a truncated row, an unknown
    // kind.
    b"d\0\0\0\x04",
    b"d\0\0\0\x1ew\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0I",
];

/// Answers to the start-up message, one entry per connection. Some of them make sqlx panic.
const ANSWERS: [&[u8]; 6] = [
    b"R\0\0\0\0",
    b"R\0\0\0\x03",
    b"Z\0\0\0\x01",
    b"R\xff\xff\xff\xffgarbage",
    b"R\0\0\0\x0c\0\0\0\x0ax",
    b"\0",
];

/// Forwards all traffic between relay and server, except that the first streams begin with hostile
/// bytes.
struct Meddler {
    address: std::net::SocketAddr,
    meddled: Arc<AtomicUsize>,
}

impl Meddler {
    /// Answers the first connections itself, each with another entry of [`ANSWERS`].
    async fn at_start_before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, meddled) = (
            listener.local_addr().expect("the listener has an address"),
            Arc::new(AtomicUsize::new(0)),
        );
        let count = meddled.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let turn = count.fetch_add(1, Ordering::Relaxed);
                let Some(answer) = ANSWERS.get(turn) else {
                    let Ok(server) = TcpStream::connect(&server).await else {
                        continue;
                    };
                    let unmeddled = Arc::new(AtomicUsize::new(HOSTILE.len()));
                    tokio::spawn(pass(client, server, unmeddled));
                    continue;
                };
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    // Decline the request for TLS, which has eight bytes. Then answer the start-up
                    // message.
                    while let Ok(read @ 1..) = client.read(&mut buffer).await {
                        let bytes = if read == 8 { b"N" } else { *answer };
                        if client.write_all(bytes).await.is_err() || read != 8 {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, meddled }
    }

    async fn before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, meddled) = (
            listener.local_addr().expect("the listener has an address"),
            Arc::new(AtomicUsize::new(0)),
        );
        let count = meddled.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else {
                    continue;
                };
                tokio::spawn(pass(client, server, count.clone()));
            }
        });
        Self { address, meddled }
    }
}

async fn pass(client: TcpStream, server: TcpStream, meddled: Arc<AtomicUsize>) {
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let streaming = Arc::new(tokio::sync::Notify::new());
    let answers = tokio::spawn(answer(from_server, to_client, streaming.clone(), meddled));
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
        if buffer[..read]
            .windows(17)
            .any(|part| part == b"START_REPLICATION")
        {
            streaming.notify_one();
        }
        if to_server.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    answers.abort();
}

async fn answer(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    streaming: Arc<tokio::sync::Notify>,
    meddled: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        tokio::select! {
            biased;
            () = streaming.notified() => {
                let turn = meddled.fetch_add(1, Ordering::Relaxed);
                if let Some(bytes) = HOSTILE.get(turn) {
                    // CopyBothResponse, followed by bytes that no server sends.
                    let _ = to.write_all(&[b"W\0\0\0\x07\0\0\0", *bytes].concat()).await;
                    return;
                }
            }
            read = from.read(&mut buffer) => match read {
                Ok(read @ 1..) => if to.write_all(&buffer[..read]).await.is_err() { return },
                _ => return,
            }
        }
    }
}

/// Hostile lengths and truncated messages in sessions of sqlx.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_library_that_panics_on_bytes_of_a_server_ends_a_session_alone() {
    let (database, place) = with_accounts(3).await;
    let url: url::Url = place.url.parse().expect("a URL");
    let meddler = Meddler::at_start_before(format!(
        "{}:{}",
        url.host_str().expect("a host"),
        url.port().expect("a port")
    ))
    .await;
    let mut meddled = url.clone();
    meddled.set_ip_host(meddler.address.ip()).expect("a host");
    meddled
        .set_port(Some(meddler.address.port()))
        .expect("a port");
    let place = Place {
        url: meddled.to_string(),
        ..place
    };
    let relay = place.start();
    write_concurrently(&database.pool, 1, 3, 10).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
    assert!(meddler.meddled.load(Ordering::Relaxed) > ANSWERS.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_break_the_protocol_end_the_stream_and_cost_no_event() {
    let (database, place) = with_accounts(6).await;
    let url: url::Url = place.url.parse().expect("a URL");
    let server = format!(
        "{}:{}",
        url.host_str().expect("a host"),
        url.port().expect("a port")
    );
    let meddler = Meddler::before(server).await;
    let mut meddled = url.clone();
    meddled.set_ip_host(meddler.address.ip()).expect("a host");
    meddled
        .set_port(Some(meddler.address.port()))
        .expect("a port");
    let place = Place {
        url: meddled.to_string(),
        ..place
    };
    let relay = place.start();
    write_concurrently(&database.pool, 2, 6, 40).await;
    relay
        .says("stream", "unexpected answer from Postgres")
        .await;
    for _ in 0..6_000 {
        if meddler.meddled.load(Ordering::Relaxed) > HOSTILE.len() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(
        meddler.meddled.load(Ordering::Relaxed) > HOSTILE.len(),
        "the relay connects again after each: {:?}",
        meddler.meddled
    );
    relay.says("stream", "streaming").await;
    write_concurrently(&database.pool, 2, 6, 40).await;
    assert_eq!(
        relay.verdict(&database.pool, &mut place.reader()).await,
        Verdict::default()
    );
}
