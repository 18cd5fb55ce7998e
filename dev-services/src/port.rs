use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::TcpListener;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Ports of servers. They are below the ranges for outgoing connections in Linux (from 32768) and
/// macOS (from 49152), so that no client takes the port of a server while it is restarted.
const RANGE: std::ops::Range<u16> = 17_000..32_000;

/// The step from which the next port is searched. It only grows, so that this process never gives
/// one port to two servers: a broker needs seconds to bind its port, which is free until then.
/// Processes begin at random steps.
static NEXT: LazyLock<AtomicU64> =
    LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(std::process::id()) / 2));

/// Returns a free port of 127.0.0.1. Another process may take it before the server does; callers
/// then retry with another port.
pub(crate) fn free_port() -> u16 {
    bind_free_port()
        .local_addr()
        .expect("a bound listener has an address")
        .port()
}

/// Binds a listener to a free port.
pub(crate) fn bind_free_port() -> TcpListener {
    let span = u64::from(RANGE.end - RANGE.start);
    (0..span)
        .map(|_| RANGE.start + (NEXT.fetch_add(1, Relaxed) % span) as u16)
        .find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
        .expect("one of 15,000 ports is free")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_port_in_use_is_not_chosen() {
        let held: Vec<_> = (0..50)
            .filter_map(|_| TcpListener::bind(("127.0.0.1", free_port())).ok())
            .collect();
        assert_eq!(held.len(), 50);
        assert!(held.iter().all(|l| {
            RANGE.contains(
                &l.local_addr()
                    .expect("a bound listener has an address")
                    .port(),
            )
        }));
    }

    #[test]
    fn a_port_is_chosen_once_even_if_no_server_has_bound_it() {
        let chosen: HashSet<_> = (0..1000).map(|_| free_port()).collect();
        assert_eq!(chosen.len(), 1000);
    }
}
