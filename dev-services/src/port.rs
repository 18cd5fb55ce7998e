use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::TcpListener;

/// Ports of servers. They are below the ranges for outgoing connections in Linux (from 32768) and
/// macOS (from 49152), so that no client takes the port of a server while it is restarted.
const RANGE: std::ops::Range<u16> = 17_000..32_000;

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
    let random = RandomState::new().hash_one(std::process::id());
    let port = |step: u64| RANGE.start + ((random.wrapping_add(step)) % span) as u16;
    (0..span)
        .map(port)
        .find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
        .expect("one of 15,000 ports is free")
}

#[cfg(test)]
mod tests {
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
}
