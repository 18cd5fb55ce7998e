//! Identity of a broker: its number, its addresses and its cluster.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::port::free_port;
use crate::proxy::local;
use crate::{Error, Proxy};

/// A broker that is also a controller.
#[derive(Clone, Debug)]
pub(super) struct Node {
    id: usize,
    pub(super) cluster: String,
    /// All controllers including this one: `1@127.0.0.1:17001,…`.
    voters: String,
    pub(super) port: u16,
    controller_port: u16,
    /// The broker's port behind its proxy, and the port of the proxy.
    proxied: Option<(u16, u16)>,
}

/// Creates a proxy to the port of a future broker.
pub(super) fn proxy() -> Result<Proxy, Error> {
    Proxy::to(local(free_port()))
}

impl Node {
    /// Returns a cluster of one broker.
    pub(super) fn alone(proxy: Option<&Proxy>) -> Self {
        Self::cluster([proxy]).swap_remove(0)
    }

    /// Returns the brokers of a new cluster, one for each proxy or `None`.
    pub(super) fn cluster<'p>(proxies: impl IntoIterator<Item = Option<&'p Proxy>>) -> Vec<Self> {
        let cluster = random_id();
        let node = |(at, proxy): (usize, Option<&Proxy>)| Self {
            id: at + 1,
            cluster: cluster.clone(),
            voters: String::new(),
            port: free_port(),
            controller_port: free_port(),
            proxied: proxy.map(|proxy| (proxy.target().port(), proxy.port())),
        };
        let mut nodes: Vec<_> = proxies.into_iter().enumerate().map(node).collect();
        let voters: Vec<_> = nodes
            .iter()
            .map(|node| format!("{}@127.0.0.1:{}", node.id, node.controller_port))
            .collect();
        for node in &mut nodes {
            node.voters = voters.join(",");
        }
        nodes
    }

    /// Returns the file that `kafka-storage.sh format` would write, which saves starting a JVM for
    /// it.
    pub(super) fn identity(&self) -> String {
        format!(
            "version=1\ncluster.id={}\nnode.id={}\ndirectory.id={}\n",
            self.cluster,
            self.id,
            random_id()
        )
    }

    /// Returns the broker's lines of `server.properties`.
    pub(super) fn properties(&self) -> String {
        let Self {
            id,
            voters,
            port,
            controller_port,
            ..
        } = self;
        let mut listeners =
            format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}");
        let mut advertised = format!("PLAINTEXT://127.0.0.1:{port}");
        if let Some((behind, proxy)) = self.proxied {
            listeners.push_str(&format!(",PROXIED://127.0.0.1:{behind}"));
            advertised.push_str(&format!(",PROXIED://127.0.0.1:{proxy}"));
        }
        format!(
            "node.id={id}\ncontroller.quorum.voters={voters}\nlisteners={listeners}\n\
             advertised.listeners={advertised}\n\
             listener.security.protocol.map=\
             PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT\n"
        )
    }
}

/// Returns a random id in Kafka's encoding of 16 bytes: 22 characters of base 64. The last one
/// holds two bits.
fn random_id() -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let random = RandomState::new();
    let digit =
        |n: u32| char::from(DIGITS[(random.hash_one((n, std::process::id())) % 32) as usize]);
    (0..21).map(digit).chain(['A']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_of_a_cluster_know_each_other_and_differ() {
        let nodes = Node::cluster([None, None, None]);
        let [one, two, three] = nodes.as_slice() else {
            panic!("three brokers")
        };
        let voters = format!(
            "controller.quorum.voters=1@127.0.0.1:{},2@127.0.0.1:{},3@127.0.0.1:{}\n",
            one.controller_port, two.controller_port, three.controller_port
        );
        assert!(
            nodes
                .iter()
                .all(|node| node.properties().contains(&voters) && node.cluster == one.cluster)
        );
        let listeners = format!(
            "listeners=PLAINTEXT://127.0.0.1:{},CONTROLLER://127.0.0.1:{}\n",
            two.port, two.controller_port
        );
        assert!(
            two.properties().contains(&listeners) && two.identity().contains("node.id=2\n"),
            "{}",
            two.properties()
        );
        assert_ne!(
            two.identity(),
            Node {
                id: 2,
                ..three.clone()
            }
            .identity(),
            "each folder has a different id"
        );
    }

    #[test]
    fn clients_behind_the_proxy_are_told_the_proxys_address() {
        let proxy = proxy().expect("a proxy");
        let properties = Node::alone(Some(&proxy)).properties();
        assert!(
            properties.contains(&format!(
                "PROXIED://127.0.0.1:{}\nadvertised",
                proxy.target().port()
            )),
            "{properties}"
        );
        assert!(
            properties.contains(&format!("PROXIED://127.0.0.1:{}\nlistener.", proxy.port())),
            "{properties}"
        );
    }

    #[test]
    fn ids_have_22_characters_and_differ() {
        assert_eq!(random_id().len(), 22);
        assert_ne!(random_id(), random_id());
    }
}
