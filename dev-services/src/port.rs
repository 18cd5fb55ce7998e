use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::TcpListener;

/// Below the ranges from which Linux (32768…) and macOS (49152…) take the ports of outgoing connections: a server that is stopped and
/// started again on its port must not find it taken by somebody's client.
const RANGE: std::ops::Range<u16> = 17_000..32_000;

/// A port of 127.0.0.1 on which nobody listens. Somebody else may take it before the server does; the callers then try another.
pub(crate) fn free_port() -> u16 {
    bind_free_port()
        .local_addr()
        .expect("a bound listener has an address")
        .port()
}

/// A listener on such a port.
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
