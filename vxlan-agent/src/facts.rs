//! Pure: what a host is, from its devices, addresses and routes: its underlay, and where it can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use limpet_net_types::{Family, NameGlob, Prefix};
use limpet_rtnl::{FoundAddress, Link, Route, RouteTarget, Scope};

use crate::layout::{is_device_name, is_veth_name};

/// The loopback device's name.
const LOOPBACK: &str = "lo";

/// The devices, addresses and routes of the main table, read together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<FoundAddress>,
    pub(crate) main: Vec<Route>,
}

/// Where a host is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// The address that VXLAN packets come from and go to.
    pub(crate) underlay: IpAddr,
    /// The MTU of its device, in bytes.
    pub(crate) mtu: u32,
    /// Its global addresses, the primary one of each family first.
    pub(crate) addresses: Vec<IpAddr>,
    /// The prefixes on its links, those of a single address left out.
    pub(crate) on_link: BTreeSet<Prefix>,
    /// Devices and where the main table leads by them, links and default routes included.
    pub(crate) led_to: Vec<(String, Prefix)>,
}

/// What of a host's addresses is its operator's choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    /// This underlay address.
    pub(crate) underlay: Option<IpAddr>,
    /// Addresses of these devices are the host's own affair.
    pub(crate) skipped: Vec<NameGlob>,
}

/// Why a host has no underlay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReachError {
    /// The address that was asked for is not there.
    #[error("underlay address {0} is on no device of this host")]
    Absent(IpAddr),
    /// No global address at all.
    #[error("this host has no global address for its underlay")]
    Nothing,
    /// More than one device could be it.
    #[error("the underlay could be on {}: name one of their addresses with --underlay", .0.join(", "))]
    Ambiguous(Vec<String>),
}

impl Seen {
    /// The names of the devices, by their indexes.
    pub(crate) fn names(&self) -> BTreeMap<u32, &str> {
        self.links.iter().map(|link| (link.index, link.name.as_str())).collect()
    }

    /// The addresses that may be the host's, in the kernel's order.
    fn global<'a>(&'a self, choice: &'a Choice) -> impl Iterator<Item = (&'a Link, IpAddr)> {
        self.global_found(choice).map(|(link, found)| (link, found.address.address))
    }

    fn global_found<'a>(
        &'a self,
        choice: &'a Choice,
    ) -> impl Iterator<Item = (&'a Link, &'a FoundAddress)> {
        let usable = |found: &&FoundAddress| {
            found.scope == Scope::Global && found.usable && !found.temporary
        };
        let addresses = self.addresses.iter().filter(usable).filter_map(|found| {
            let link = self.links.iter().find(|link| link.index == found.address.device)?;
            Some((link, found))
        });
        addresses.filter(|(link, _)| {
            let name = link.name.as_str();
            let skipped = choice.skipped.iter().any(|glob| glob.matches(name));
            !is_device_name(name) && !is_veth_name(name) && !skipped
        })
    }

    /// Finds the underlay: the address asked for; else one on the default route's device; else one on the only
    /// device that has any. IPv4 before IPv6.
    pub(crate) fn reach(&self, choice: &Choice) -> Result<Reach, ReachError> {
        let (link, underlay) = match choice.underlay {
            Some(wanted) => self.on_device(wanted).ok_or(ReachError::Absent(wanted))?,
            None => self.default_underlay(choice)?,
        };
        let mut global: Vec<_> = self.global(choice).collect();
        // Stable: within a device the kernel's order is the operator's.
        global
            .sort_by_key(|(at, address)| (*address != underlay, at.index != link.index, at.index));
        let mut addresses: Vec<IpAddr> = global.into_iter().map(|(_, address)| address).collect();
        let mut known = BTreeSet::new();
        addresses.retain(|address| known.insert(*address));
        let on_link = self.on_link(choice);
        Ok(Reach {
            underlay,
            mtu: self.carrier_mtu(link),
            addresses,
            on_link,
            led_to: self.led_to(),
        })
    }

    fn led_to(&self) -> Vec<(String, Prefix)> {
        let names = self.names();
        let leads = self.main.iter().filter_map(|route| match route.target {
            RouteTarget::Device { index, .. } => {
                Some(((*names.get(&index)?).to_owned(), route.destination))
            }
            _ => None,
        });
        leads.filter(|(device, _)| !is_device_name(device) && !is_veth_name(device)).collect()
    }

    /// The MTU of what carries packets from an underlay on `link`. An address of the loopback device is one for a
    /// routed fabric: packets leave by whichever device leads on, and must fit each.
    fn carrier_mtu(&self, link: &Link) -> u32 {
        if link.name != LOOPBACK {
            return link.mtu;
        }
        let carriers = self.main.iter().filter_map(|route| match route.target {
            RouteTarget::Device { index, gateway: Some(_), .. } => Some(index),
            _ => None,
        });
        let carriers: BTreeSet<u32> = carriers.collect();
        let carriers = self.links.iter().filter(|link| carriers.contains(&link.index));
        let others = self.links.iter().filter(|other| {
            other.up
                && other.name != LOOPBACK
                && !is_device_name(&other.name)
                && !is_veth_name(&other.name)
        });
        let smallest = carriers.map(|link| link.mtu).min();
        smallest.or_else(|| others.map(|link| link.mtu).min()).unwrap_or(link.mtu)
    }

    fn on_link(&self, choice: &Choice) -> BTreeSet<Prefix> {
        let addresses = self.global_found(choice).map(|(_, found)| found.address);
        let shared = addresses.filter(|at| at.length < Family::of(at.address).bits());
        shared.map(|at| Prefix::containing(at.address, at.length)).collect()
    }

    fn on_device(&self, wanted: IpAddr) -> Option<(&Link, IpAddr)> {
        let found = self.addresses.iter().find(|found| found.address.address == wanted)?;
        let link = self.links.iter().find(|link| link.index == found.address.device)?;
        Some((link, wanted))
    }

    fn default_underlay<'a>(
        &'a self,
        choice: &'a Choice,
    ) -> Result<(&'a Link, IpAddr), ReachError> {
        let mut defaults: Vec<&Route> =
            self.main.iter().filter(|route| route.destination.length() == 0).collect();
        defaults.sort_by_key(|route| (route.destination.family(), route.metric));
        for route in defaults {
            let RouteTarget::Device { index, .. } = route.target else { continue };
            let on_it = self.global(choice).filter(|(link, _)| link.index == index);
            if let Some(found) = on_it.min_by_key(|(_, address)| Family::of(*address)) {
                return Ok(found);
            }
        }
        let real: Vec<_> =
            self.global(choice).filter(|(_, address)| !address.is_loopback()).collect();
        // The loopback device carries service addresses, no packets.
        let real: Vec<_> = real.into_iter().filter(|(link, _)| link.name != LOOPBACK).collect();
        let mut devices: Vec<_> = real.iter().map(|(link, _)| link.name.clone()).collect();
        devices.sort_unstable();
        devices.dedup();
        if devices.len() > 1 {
            return Err(ReachError::Ambiguous(devices));
        }
        let first = real.into_iter().min_by_key(|(_, address)| Family::of(*address));
        first.ok_or(ReachError::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use limpet_rtnl::{Address, LinkKind};

    use super::*;

    fn index(seen: &Seen, name: &str) -> Option<u32> {
        seen.links.iter().find(|link| link.name == name).map(|link| link.index)
    }

    fn host(addresses: &[(&str, &str)]) -> Seen {
        let mut seen = Seen::default();
        for (device, address) in addresses {
            let index = index(&seen, device).unwrap_or_else(|| {
                let index = u32::try_from(seen.links.len()).unwrap() + 1;
                seen.links.push(Link {
                    index,
                    name: (*device).to_owned(),
                    mac: None,
                    mtu: 1500,
                    group: 0,
                    alias: None,
                    up: true,
                    carrier: true,
                    kind: LinkKind::Other(String::new()),
                });
                index
            });
            let address: IpAddr = address.parse().unwrap();
            let address = Address { device: index, address, length: 24, no_dad: false };
            let (usable, temporary) = (true, false);
            seen.addresses.push(FoundAddress { address, scope: Scope::Global, usable, temporary });
        }
        seen
    }

    fn by_default(seen: &mut Seen, device: &str, any: &str) {
        seen.main.push(Route {
            table: 254,
            protocol: 3,
            destination: any.parse().unwrap(),
            target: RouteTarget::link(index(seen, device).unwrap()),
            source: None,
            metric: 0,
        });
    }

    #[test]
    fn the_underlay_is_on_the_default_routes_device_and_ipv4_where_it_can_be() {
        let addresses = [("eth0", "10.0.0.1"), ("eth1", "2001:db8::2"), ("eth1", "192.0.2.2")];
        let mut seen = host(&addresses);
        let several = ReachError::Ambiguous(vec!["eth0".to_owned(), "eth1".to_owned()]);
        assert_eq!(seen.reach(&Choice::default()), Err(several));
        by_default(&mut seen, "eth1", "::/0");
        let reach = seen.reach(&Choice::default()).unwrap();
        assert_eq!(reach.underlay.to_string(), "192.0.2.2");
        let order: Vec<_> = reach.addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(order, ["192.0.2.2", "2001:db8::2", "10.0.0.1"]);
    }

    #[test]
    fn an_underlay_that_was_asked_for_is_taken_or_missed() {
        let mut choice = Choice { underlay: Some("10.0.0.1".parse().unwrap()), skipped: vec![] };
        let seen = host(&[("eth1", "192.0.2.2"), ("eth0", "10.0.0.1")]);
        assert_eq!(seen.reach(&choice).unwrap().underlay.to_string(), "10.0.0.1");
        choice.underlay = Some("10.0.0.9".parse().unwrap());
        assert_eq!(seen.reach(&choice), Err(ReachError::Absent("10.0.0.9".parse().unwrap())));
        assert_eq!(Seen::default().reach(&Choice::default()), Err(ReachError::Nothing));
    }

    #[test]
    fn an_underlay_of_the_loopback_device_has_the_mtu_of_what_leads_on() {
        let choice = Choice { underlay: Some("192.0.2.1".parse().unwrap()), skipped: vec![] };
        let mut seen = host(&[("lo", "192.0.2.1"), ("eth0", "10.0.0.1"), ("eth1", "10.0.1.1")]);
        seen.links[0].mtu = 65536;
        seen.links[2].mtu = 9000;
        assert_eq!(seen.reach(&choice).unwrap().mtu, 1500);
        by_default(&mut seen, "eth1", "0.0.0.0/0");
        let via = Some("10.0.1.254".parse().unwrap());
        seen.main[0].target = RouteTarget::Device { index: 3, gateway: via, onlink: false };
        assert_eq!(seen.reach(&choice).unwrap().mtu, 9000);
        let led_to = vec![("eth1".to_owned(), "0.0.0.0/0".parse().unwrap())];
        assert_eq!(seen.reach(&choice).unwrap().led_to, led_to);
    }

    #[test]
    fn addresses_of_limpets_and_of_skipped_devices_are_not_the_hosts() {
        let seen = host(&[
            ("eth0", "192.0.2.1"),
            ("lo", "203.0.113.1"),
            ("limpet1", "198.18.0.1"),
            ("lc0123456789a", "198.18.0.2"),
            ("docker0", "172.17.0.1"),
        ]);
        let choice = Choice { underlay: None, skipped: vec!["docker*".parse().unwrap()] };
        let order: Vec<_> =
            seen.reach(&choice).unwrap().addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(order, ["192.0.2.1", "203.0.113.1"]);
        let on_link = seen.reach(&choice).unwrap().on_link;
        let on_link: Vec<_> = on_link.iter().map(Prefix::to_string).collect();
        assert_eq!(on_link, ["192.0.2.0/24", "203.0.113.0/24"]);
    }
}
