//! A proxy between a program and a server on 127.0.0.1, with which a test can cut their connection.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::Error;
use crate::port::bind_free_port;

/// Maximum number of concurrent connections. Further ones are closed immediately.
const CONNECTIONS_MAX: usize = 1_000;

/// Localhost accepts or refuses a connection within this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Forwards connections to a server. Closes all of them on drop.
///
/// ```no_run
/// # fn main() -> Result<(), tidings_testing::Error> {
/// # let server = tidings_testing::Postgres::start(tidings_testing::PostgresOptions::new())?;
/// let wire = tidings_testing::Proxy::to(server.address())?;
/// // … a program connects to wire.address() …
/// wire.stall(); // no data arrives, and no connection is closed
/// wire.resume();
/// wire.cut(); // all connections end; the program may connect again
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    wire: Arc<Wire>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Wire {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    refusing: bool,
    stalled: bool,
    closing: bool,
    next: u64,
    /// Both ends of each connection, by number.
    open: Vec<(u64, TcpStream, TcpStream)>,
}

impl Proxy {
    /// Listens on a free port and forwards each connection to `target`, which does not have to be
    /// available yet.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system refuses a socket or a thread.
    pub fn to(target: SocketAddr) -> Result<Self, Error> {
        let listener = bind_free_port();
        let address = listener
            .local_addr()
            .map_err(Error::system("read the proxy's address"))?;
        let state = State {
            target,
            refusing: false,
            stalled: false,
            closing: false,
            next: 0,
            open: Vec::new(),
        };
        let wire = Arc::new(Wire {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&wire);
        let acceptor = thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || accepting.accept_all(&listener));
        Ok(Self {
            address,
            wire,
            acceptor: Some(acceptor.map_err(Error::system("start a thread"))?),
        })
    }

    /// Returns the address to connect to instead of the server's.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Ends every connection in both directions. The program may connect again.
    pub fn cut(&self) {
        self.wire.state().cut();
        self.wire.changed.notify_all();
    }

    /// Ends each new connection immediately until [`accept`](Self::accept) is called. Open
    /// connections continue.
    pub fn refuse(&self) {
        self.wire.state().refusing = true;
    }

    /// Accepts connections again after [`refuse`](Self::refuse).
    pub fn accept(&self) {
        self.wire.state().refusing = false;
    }

    /// Stops forwarding in both directions without closing a connection, like a lost route. New
    /// connections are accepted but receive no data.
    pub fn stall(&self) {
        self.wire.state().stalled = true;
    }

    /// Resumes forwarding after [`stall`](Self::stall). Data that was sent meanwhile arrives.
    pub fn resume(&self) {
        self.wire.state().stalled = false;
        self.wire.changed.notify_all();
    }

    /// Forwards new connections to another server, as after a failover. Open connections continue;
    /// end them with [`cut`](Self::cut).
    pub fn point_to(&self, target: SocketAddr) {
        self.wire.state().target = target;
    }

    /// Returns the target of new connections.
    pub fn target(&self) -> SocketAddr {
        self.wire.state().target
    }

    /// Returns the number of open connections.
    pub fn connections(&self) -> usize {
        self.wire.state().open.len()
    }
}

// === impl Drop ===

impl Drop for Proxy {
    fn drop(&mut self) {
        self.wire.state().closing = true;
        self.cut();
        // Wakes the acceptor.
        let _ = TcpStream::connect_timeout(&self.address, CONNECT_LIMIT);
        let _ = self.acceptor.take().map(JoinHandle::join);
    }
}

impl Wire {
    /// Locks the state. No thread panics while it holds the lock, and a failed test must still be
    /// able to release the proxy.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_all(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.state().closing {
                return;
            }
            // A connection that cannot be established ends here, as it would at the server.
            let _ = client.and_then(|client| self.connect(client));
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        let target = match &*self.state() {
            state if state.refusing || state.open.len() >= CONNECTIONS_MAX => return Ok(()),
            state => state.target,
        };
        let server = TcpStream::connect_timeout(&target, CONNECT_LIMIT)?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
        }
        let number = {
            let mut state = self.state();
            state.next += 1;
            let number = state.next;
            state
                .open
                .push((number, client.try_clone()?, server.try_clone()?));
            number
        };
        self.pump(number, client.try_clone()?, server.try_clone()?)?;
        self.pump(number, server, client)
    }

    /// Forwards one direction on a separate thread. Once either end is closed, both are closed: the
    /// protocols used here have no use for half-open connections.
    fn pump(
        self: &Arc<Self>,
        number: u64,
        mut from: TcpStream,
        mut to: TcpStream,
    ) -> io::Result<()> {
        let wire = Arc::clone(self);
        let forward = move || {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                wire.wait_while_stalled(number);
                if to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            // While the proxy is stalled, the end of a connection is not forwarded either.
            wire.wait_while_stalled(number);
            wire.state().close(number);
        };
        thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(forward)
            .map(drop)
    }

    /// Waits while the proxy is stalled. Returns immediately if the connection was cut.
    fn wait_while_stalled(&self, number: u64) {
        let stalled = |state: &mut State| {
            state.stalled && state.open.iter().any(|(open, ..)| *open == number)
        };
        drop(self.changed.wait_while(self.state(), stalled));
    }
}

impl State {
    fn cut(&mut self) {
        for (_, client, server) in self.open.drain(..) {
            shut(&client, &server);
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(at) = self.open.iter().position(|(open, ..)| *open == number) {
            let (_, client, server) = self.open.swap_remove(at);
            shut(&client, &server);
        }
    }
}

/// Shuts both ends down. The call fails for an end that is already closed, which needs no action.
fn shut(client: &TcpStream, server: &TcpStream) {
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// Returns the address of a port on this machine.
pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a server that echoes each byte.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind(local(0)).expect("a port is free");
        let address = listener
            .local_addr()
            .expect("a bound listener has an address");
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                thread::spawn(move || io::copy(&mut &client, &mut &client));
            }
        });
        address
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let client = TcpStream::connect(proxy.address()).expect("the proxy listens");
        client
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("a limit");
        client
    }

    fn answer(client: &mut TcpStream, byte: u8) -> io::Result<u8> {
        client.write_all(&[byte])?;
        hear(client)
    }

    fn hear(client: &mut TcpStream) -> io::Result<u8> {
        let mut heard = [0];
        client.read_exact(&mut heard).map(|()| heard[0])
    }

    fn is_silence(error: &io::Error) -> bool {
        matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        )
    }

    #[test]
    fn bytes_go_both_ways_until_the_wire_is_cut_and_again_on_a_new_connection() {
        let proxy = Proxy::to(echo()).expect("a proxy");
        let mut client = connect(&proxy);
        assert_eq!(answer(&mut client, 7).expect("an answer"), 7);
        assert_eq!(proxy.connections(), 1);
        proxy.cut();
        let ended = hear(&mut client).expect_err("the connection has ended");
        assert!(!is_silence(&ended), "{ended}");
        assert_eq!(proxy.connections(), 0);
        assert_eq!(answer(&mut connect(&proxy), 8).expect("an answer"), 8);
    }

    #[test]
    fn a_stalled_wire_is_silent_and_gives_everything_once_it_is_resumed() {
        let proxy = Proxy::to(echo()).expect("a proxy");
        let mut client = connect(&proxy);
        assert_eq!(answer(&mut client, 1).expect("an answer"), 1);
        proxy.stall();
        assert!(is_silence(&answer(&mut client, 2).expect_err("silence")));
        let mut new = connect(&proxy);
        assert!(is_silence(&answer(&mut new, 3).expect_err("silence")));
        proxy.resume();
        assert_eq!(hear(&mut client).expect("what was sent meanwhile"), 2);
        assert_eq!(hear(&mut new).expect("what was sent meanwhile"), 3);
        proxy.stall();
        assert!(is_silence(&answer(&mut client, 4).expect_err("silence")));
        proxy.cut();
        assert!(!is_silence(
            &hear(&mut client).expect_err("a stalled connection can be cut")
        ));
    }

    #[test]
    fn new_connections_are_refused_and_old_ones_go_on() {
        let proxy = Proxy::to(echo()).expect("a proxy");
        let mut old = connect(&proxy);
        assert_eq!(answer(&mut old, 1).expect("an answer"), 1);
        proxy.refuse();
        let refused = answer(&mut connect(&proxy), 2).expect_err("refused");
        assert!(!is_silence(&refused), "{refused}");
        assert_eq!(answer(&mut old, 3).expect("an answer"), 3);
        proxy.accept();
        assert_eq!(answer(&mut connect(&proxy), 4).expect("an answer"), 4);
    }

    #[test]
    fn it_leads_to_another_server_and_is_gone_when_it_is_dropped() {
        let proxy = Proxy::to(local(1)).expect("a proxy");
        assert!(
            answer(&mut connect(&proxy), 1).is_err(),
            "nothing listens on port 1"
        );
        proxy.point_to(echo());
        let mut client = connect(&proxy);
        assert_eq!(answer(&mut client, 2).expect("an answer"), 2);
        let address = proxy.address();
        drop(proxy);
        assert!(!is_silence(
            &hear(&mut client).expect_err("the connection has ended")
        ));
        assert!(
            TcpStream::connect(address).is_err(),
            "nothing listens any more"
        );
    }
}
