//! Where this node and its peers reach each other.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::PeersSection;
use crate::tls::is_dns_name;

/// Whether a text says where a peer is.
pub(crate) fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host =
        bare.map_or_else(|| is_dns_name(host) || host.parse::<Ipv4Addr>().is_ok(), |h| h.parse::<Ipv6Addr>().is_ok());
    host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

impl PeersSection {
    /// Where peers are told to reach this node.
    pub(super) fn reached(&self) -> String {
        if !self.address.is_empty() {
            return self.address.clone();
        }
        if !self.listen.ip().is_unspecified() {
            return self.listen.to_string();
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        format!("{host}:{}", self.listen.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_peer_is() {
        for good in ["box-02:8444", "10.0.0.2:8444", "[fd00::2]:8444", "box.example:1"] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in
            ["", "box-02", "box-02:", "box-02:0", "box-02:65536", "fd00::2:8444", "[box]:1", "a b:1", "https://box:1"]
        {
            assert!(!is_host_and_port(bad), "{bad}");
        }
        let section = |listen: &str, address: &str| PeersSection {
            listen: listen.parse().expect("an address"),
            address: address.to_owned(),
        };
        assert_eq!(section("10.0.0.2:9444", "").reached(), "10.0.0.2:9444", "it listens at one address");
        assert_eq!(section("10.0.0.2:9444", "box:1").reached(), "box:1", "what is said counts");
        let everywhere = section("0.0.0.0:9444", "").reached();
        assert!(everywhere.ends_with(":9444") && !everywhere.starts_with("0.0.0.0"), "{everywhere}: the host's name");
    }
}
