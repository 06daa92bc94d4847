//! Edge: what connects hosts: one Ethernet segment, a bridge in a network namespace of its own.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::host::Host;
use crate::run::sh;

/// An Ethernet segment. Its own namespace has no address in it.
#[derive(Debug)]
pub struct Fabric {
    bridge: Host,
}

impl Fabric {
    /// Makes a segment with nobody on it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let bridge = Host::new(name);
        bridge.run("ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up");
        Self { bridge }
    }

    /// Connects `host` through a new device with these addresses, such as `192.0.2.1/24`.
    pub fn join(&self, host: &Host, device: &str, addresses: &[&str]) {
        let port = &port_of(host);
        let (fabric, netns) = (self.bridge.netns_handle(), host.netns_handle());
        // A machine that was rebooted has left its end of the cable behind; its card is still the same one.
        let mac = mac(port);
        drop(sh(&format!(
            "ip -n {fabric} link del {port} 2> /dev/null || true; \
             ip -n {fabric} link add {port} type veth peer name {device} address {mac} netns {netns}; \
             ip -n {fabric} link set {port} master br0 up"
        )));
        // Also the link-local address, without which a router cannot ask for a neighbour.
        host.run(&format!("sysctl -qw net.ipv6.conf.{device}.accept_dad=0"));
        for address in addresses {
            host.run(&format!("ip addr add {address} dev {device} {}", nodad(address)));
        }
        host.run(&format!("ip link set {device} up"));
    }

    /// Pulls a host's cable: its device stays, without carrier.
    pub fn unplug(&self, host: &Host) {
        self.bridge.run(&format!("ip link set {} down", port_of(host)));
    }

    /// Puts a cable that was pulled in again.
    pub fn plug_again(&self, host: &Host) {
        self.bridge.run(&format!("ip link set {} up", port_of(host)));
    }

    /// Joins any number of hosts as one more device on the segment would: see [`Fabric::join`].
    #[must_use]
    pub fn of(name: &str, hosts: &[(&Host, &[&str])]) -> Self {
        let fabric = Self::new(name);
        for (host, addresses) in hosts {
            fabric.join(host, "eth0", addresses);
        }
        fabric
    }
}

/// The segment's end of a host's cable.
fn port_of(host: &Host) -> String {
    let port = format!("p{}", host.unique_name());
    port[port.len().saturating_sub(15)..].to_owned()
}

/// The MAC address of the card at the end of this cable.
fn mac(port: &str) -> String {
    let mut hasher = DefaultHasher::new();
    port.hash(&mut hasher);
    let bytes = hasher.finish().to_be_bytes().map(|byte| format!("{byte:02x}"));
    format!("02:{}", bytes[..5].join(":"))
}

/// Duplicate address detection would keep an IPv6 address unusable for its first second.
fn nodad(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "" }
}
