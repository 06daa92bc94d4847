//! Pure: the mirror of the kernel: what it is known to have, kept up by what it tells of its changes.
//!
//! The kernel tells of every change of an entry, but not of what goes silently with something else: routes with a
//! device that was set down, or with their nexthop. So what limpet's plugin does, and what goes with a container's
//! interface, is taken in; what is told of limpet's own steps is in the mirror already, by [`take`], and is no news; and
//! after anything else of limpet's that changed all is read again.

use std::collections::{BTreeMap, BTreeSet};

use limpet_net_types::Family;
use limpet_rtnl::{
    Change, Entry, FdbEntry, FoundAddress, FoundNeighbour, Link, Nexthop as RtNexthop, NexthopKind,
    Route as RtRoute, RouteTarget, Rule as RtRule, Table,
};

use crate::facts::Seen;
use crate::inside::MAIN;
use crate::layout::{
    Address, Device, Fdb, FoundNexthop, GROUP_OF_THE_DEAD, GROUP_OF_THE_SEVERED, PROTOCOL, Route,
    RouteKey, Setting, Tables, Target, Veth, is_device_name, is_own_table, is_veth_name,
};
use crate::step::Step;
use crate::translate::{found_route, found_rule, leads, take_links, veth_of};

/// What a change means for the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Nothing: it is known, or nobody's business.
    Nothing,
    /// Settings may have other values.
    Stale,
    /// It is in the mirror now.
    Taken,
    /// The host's own devices, addresses or main table are to be read again.
    Glance,
    /// Everything is.
    Doubt,
}

/// What the kernel is known to have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mirror {
    /// What the host is.
    pub(crate) seen: Seen,
    /// Limpet's entries, and of the settings those that were read.
    pub(crate) tables: Tables,
    /// The devices whose settings changed since they were read.
    pub(crate) stale: BTreeSet<String>,
    /// Settings that were right and have another value now.
    pub(crate) spoilt: Vec<(Setting, String)>,
}

impl Mirror {
    /// Takes in what the kernel tells of a change.
    pub(crate) fn hear(&mut self, change: &Change) -> Verdict {
        // Other programs' routes and rules come and go by the thousand.
        let foreign = change.protocol.is_some_and(|by| by != PROTOCOL);
        if change.table == Table::Route && foreign {
            // The default route says where the underlay is.
            return match change.entry() {
                Some(Entry::Route(route))
                    if route.table == MAIN && route.destination.length() == 0 =>
                {
                    Verdict::Glance
                }
                _ => Verdict::Nothing,
            };
        }
        let Some(entry) = change.entry() else { return Verdict::Doubt };
        match entry {
            Entry::Link(link) => self.link(link, change.gone),
            Entry::Address(found) => self.address(&found, change.gone),
            Entry::Neighbour(found) => self.neighbour(&found, change.gone),
            Entry::Fdb(entry) => self.fdb(entry, change.gone),
            Entry::Route(route) => self.route(&route, change.gone, change.replaces),
            Entry::Rule(rule) => self.rule(rule, change.gone),
            Entry::Nexthop(nexthop) => self.nexthop(&nexthop, change.gone),
            Entry::Settings => self.settings(change.device, change.gone),
        }
    }

    /// Takes the host's devices, addresses and main table in, read just now.
    pub(crate) fn glanced(&mut self, seen: Seen) -> Verdict {
        let mut fresh = Tables::default();
        take_links(&mut fresh, &seen);
        let Tables { devices, veths, addresses, .. } = &self.tables;
        let same = (devices, veths, addresses) == (&fresh.devices, &fresh.veths, &fresh.addresses);
        self.seen = seen;
        if same { Verdict::Taken } else { Verdict::Doubt }
    }

    fn name(&self, index: u32) -> Option<&str> {
        let link = self.seen.links.iter().find(|link| link.index == index)?;
        Some(&link.name)
    }

    /// The name of one device: a host may have very many, and the kernel much to tell.
    fn names_of(&self, device: Option<u32>) -> BTreeMap<u32, &str> {
        device.and_then(|index| Some((index, self.name(index)?))).into_iter().collect()
    }

    /// Whether this is an interface of a container that is on the network.
    fn lives(&self, device: &str) -> bool {
        let grave = [GROUP_OF_THE_DEAD, GROUP_OF_THE_SEVERED];
        self.tables.veths.get(device).is_some_and(|veth| veth.up && !grave.contains(&veth.group))
    }

    fn link(&mut self, link: Link, gone: bool) -> Verdict {
        let at = self.seen.links.iter().position(|old| old.index == link.index);
        let old = at.and_then(|at| self.seen.links.get(at));
        if (gone && old.is_none()) || (!gone && old == Some(&link)) {
            return Verdict::Nothing;
        }
        let before = old.map(|old| old.name.clone());
        let names = || before.iter().map(String::as_str).chain([link.name.as_str()]);
        if names().any(is_device_name) {
            return Verdict::Doubt;
        }
        let veth = veth_of(&link);
        let was = before.as_ref().and_then(|name| self.tables.veths.get(name));
        if veth.is_none() && was.is_none() {
            return Verdict::Glance;
        }
        if let (Some(was), Some(veth), false) = (was, &veth, gone)
            && before.as_deref() == Some(&link.name)
            && is_odd(was, veth)
        {
            return Verdict::Doubt;
        }
        if let Some(at) = at {
            self.seen.links.swap_remove(at);
        }
        if let Some(name) = before.filter(|name| gone || *name != link.name) {
            self.forget(&name);
            self.tables.veths.remove(&name);
            self.tables.settings.retain(|(setting, _)| setting.device != name);
        }
        if !gone {
            if let Some(veth) = veth {
                if !veth.up {
                    self.forget(&link.name);
                }
                self.tables.veths.insert(link.name.clone(), veth);
            }
            self.seen.links.push(link);
        }
        Verdict::Taken
    }

    /// Takes along what goes with a container's interface when that goes down.
    fn forget(&mut self, veth: &str) {
        self.tables
            .routes
            .retain(|route| !matches!(&route.target, Target::Link(device) if device == veth));
        self.tables.neighbours.retain(|(device, _), _| device != veth);
    }

    fn address(&mut self, found: &FoundAddress, gone: bool) -> Verdict {
        let at = found.address;
        let name = self.name(at.device);
        if name.is_some_and(is_veth_name) {
            return Verdict::Nothing;
        }
        if let Some(device) = name.filter(|name| is_device_name(name)) {
            let device = device.to_owned();
            let address = Address { device, ip: at.address, length: at.length };
            return doubt_if(self.tables.addresses.contains(&address) == gone);
        }
        let same = |old: &&FoundAddress| {
            let old = old.address;
            (old.device, old.address, old.length) == (at.device, at.address, at.length)
        };
        let known = self.seen.addresses.iter().find(same);
        let news = if gone { known.is_some() } else { known != Some(found) };
        if news { Verdict::Glance } else { Verdict::Nothing }
    }

    fn neighbour(&mut self, found: &FoundNeighbour, gone: bool) -> Verdict {
        let Some(device) = self.name(found.device).map(str::to_owned) else {
            return Verdict::Nothing;
        };
        let of_veth = is_veth_name(&device);
        if !of_veth && !is_device_name(&device) {
            return Verdict::Nothing;
        }
        let now = found.as_permanent().filter(|_| !gone).map(|entry| entry.mac);
        let lives = self.lives(&device);
        let key = (device, found.address);
        match (self.tables.neighbours.get(&key), now) {
            (known, now) if known == now.as_ref() => Verdict::Nothing,
            (None, Some(mac)) if of_veth => {
                self.tables.neighbours.insert(key, mac);
                Verdict::Taken
            }
            (Some(_), None) if of_veth && !lives => {
                self.tables.neighbours.remove(&key);
                Verdict::Taken
            }
            _ => Verdict::Doubt,
        }
    }

    fn fdb(&self, entry: FdbEntry, gone: bool) -> Verdict {
        let Some(device) = self.name(entry.device).filter(|name| is_device_name(name)) else {
            return Verdict::Nothing;
        };
        let entry = Fdb { device: device.to_owned(), mac: entry.mac, vtep: entry.vtep };
        doubt_if(self.tables.fdb.contains(&entry) == gone)
    }

    fn route(&mut self, route: &RtRoute, gone: bool, replaces: bool) -> Verdict {
        if !is_own_table(route.table) {
            return Verdict::Nothing;
        }
        let device = match route.target {
            RouteTarget::Device { index, .. } => Some(index),
            _ => None,
        };
        let Some(route) = found_route(route, &self.names_of(device)) else {
            return doubt_if(!gone);
        };
        if self.tables.routes.contains(&route) != gone {
            return Verdict::Nothing;
        }
        let Target::Link(device) = &route.target else { return Verdict::Doubt };
        if gone {
            if self.lives(device) {
                return Verdict::Doubt;
            }
            self.tables.routes.remove(&route);
            return Verdict::Taken;
        }
        match at_key(&self.tables.routes, route.key) {
            Some(_) if !replaces => return Verdict::Doubt,
            // The container has come here from the host that this led to.
            Some(other) => self.tables.routes.remove(&other),
            None => false,
        };
        self.tables.routes.insert(route);
        Verdict::Taken
    }

    fn rule(&self, rule: Option<RtRule>, gone: bool) -> Verdict {
        match rule.filter(|rule| rule.protocol == PROTOCOL) {
            Some(rule) => doubt_if(self.tables.rules.contains(&found_rule(rule)) == gone),
            None => Verdict::Nothing,
        }
    }

    fn nexthop(&mut self, nexthop: &RtNexthop, gone: bool) -> Verdict {
        let ours = nexthop.protocol == PROTOCOL;
        let device = match nexthop.kind {
            NexthopKind::Gateway { device, .. } => Some(device),
            _ => None,
        };
        let leads = leads(&nexthop.kind, &self.names_of(device));
        let found = FoundNexthop { ours, leads };
        let known = self.tables.nexthops.get(&nexthop.id);
        let news = if gone { known.is_some() } else { known != Some(&found) };
        if !news {
            return Verdict::Nothing;
        }
        if ours || known.is_some_and(|known| known.ours) {
            return Verdict::Doubt;
        }
        // Only its number is of interest.
        if gone {
            self.tables.nexthops.remove(&nexthop.id);
        } else {
            self.tables.nexthops.insert(nexthop.id, found);
        }
        Verdict::Nothing
    }

    fn settings(&mut self, device: Option<u32>, gone: bool) -> Verdict {
        if gone {
            return Verdict::Nothing;
        }
        let name = match device {
            None => "all",
            Some(index) => match self.name(index) {
                Some(name) => name,
                None => return Verdict::Nothing,
            },
        };
        let (name, all) = (name.to_owned(), device.is_none());
        let read = self.tables.settings.iter().any(|(setting, _)| setting.device == name);
        if !read && !all {
            return Verdict::Nothing;
        }
        self.stale.insert(name);
        // What is said for all devices changes what is wanted.
        if all { Verdict::Taken } else { Verdict::Stale }
    }

    /// Takes in values of settings that were read just now, and returns whether any is another than before.
    pub(crate) fn read(&mut self, settings: Vec<(Setting, String)>) -> bool {
        let mut read: BTreeMap<Setting, String> = settings.into_iter().collect();
        let spoilt = self.spoilt.len();
        for (setting, known) in &mut self.tables.settings {
            if let Some(value) = read.remove(setting)
                && value != *known
            {
                self.spoilt.push((setting.clone(), std::mem::replace(known, value)));
            }
        }
        let news = self.spoilt.len() > spoilt || !read.is_empty();
        self.tables.settings.extend(read);
        news
    }

    /// Whether the kernel had, when it was known last, what a step is to bring about: then the step mends what others
    /// did.
    pub(crate) fn had(&self, step: &Step) -> bool {
        let tables = &self.tables;
        let is = |name: &String, mtu: Option<u32>, group: Option<u32>, up: bool| {
            let fits = |has: (Option<u32>, u32, bool)| {
                mtu.is_none_or(|mtu| has.0 == Some(mtu))
                    && group.is_none_or(|group| has.1 == group)
                    && (has.2 || !up)
            };
            let device = tables.devices.get(name).map(|at| (Some(at.mtu), at.group, at.up));
            let veth = tables.veths.get(name).map(|at| (Some(at.mtu), at.group, at.up));
            device.or(veth).is_some_and(fits)
        };
        match step {
            Step::NewDevice { name, device: Device { vxlan, .. }, .. } => {
                tables.devices.get(name).is_some_and(|had| had.vxlan == *vxlan)
            }
            Step::ChangeDevice { name, mtu, group, up } => is(name, *mtu, *group, *up),
            Step::DelDevice(name) => !tables.devices.contains_key(name),
            Step::SetSetting(setting, value) => {
                let right = |(of, had): &(Setting, String)| of == setting && had == value;
                tables.settings.iter().chain(&self.spoilt).any(right)
            }
            Step::SetAddress(address) => tables.addresses.contains(address),
            Step::SetRuleset(ruleset) => tables.ruleset.as_ref() == Some(&ruleset.listing()),
            Step::SetFdb(entry) => tables.fdb.contains(entry),
            Step::DelFdb(entry) => !tables.fdb.contains(entry),
            Step::SetNeighbour { device, address, mac } => {
                tables.neighbours.get(&(device.clone(), *address)) == Some(mac)
            }
            Step::DelNeighbour { device, address } => {
                !tables.neighbours.contains_key(&(device.clone(), *address))
            }
            Step::SetNexthop(id, leads) => {
                tables.nexthops.get(id).is_some_and(|had| had.ours && had.leads == *leads)
            }
            Step::DelNexthop(id) => !tables.nexthops.contains_key(id),
            Step::SetRoute(route) => tables.routes.contains(route),
            Step::DelRoute(route) => !tables.routes.contains(route),
            Step::SetRule(rule) => tables.rules.contains(rule),
            Step::DelRule(rule) => !tables.rules.contains(rule),
        }
    }
}

/// The first route of a key.
fn at_key(routes: &BTreeSet<Route>, key: RouteKey) -> Option<Route> {
    let least = Route { key, target: Target::Nexthop(0), source: None };
    routes.range(least..).next().filter(|route| route.key == key).cloned()
}

/// Whether an interface of a container changed as nobody of limpet's changes it: only the burial, and the cut from the
/// network, set it down.
fn is_odd(was: &Veth, now: &Veth) -> bool {
    let grave = [GROUP_OF_THE_DEAD, GROUP_OF_THE_SEVERED];
    let changed =
        was.up && !now.up || (was.group, was.mtu, was.uid) != (now.group, now.mtu, now.uid);
    was.uid.is_some() && !grave.contains(&now.group) && changed
}

fn doubt_if(news: bool) -> Verdict {
    if news { Verdict::Doubt } else { Verdict::Nothing }
}

/// Takes in a step that was carried out. Of devices it does not know what went with them: after such a step all is
/// to be read again.
pub(crate) fn take(tables: &mut Tables, step: &Step) -> Verdict {
    match step.clone() {
        Step::NewDevice { .. } | Step::ChangeDevice { .. } | Step::DelDevice(_) => {
            return Verdict::Doubt;
        }
        Step::SetSetting(setting, value) => {
            match tables.settings.iter_mut().find(|(known, _)| *known == setting) {
                Some((_, known)) => *known = value,
                None => tables.settings.push((setting, value)),
            }
        }
        Step::SetAddress(address) => {
            tables.addresses.insert(address);
        }
        Step::SetRuleset(ruleset) => tables.ruleset = Some(ruleset.listing()),
        Step::SetFdb(entry) => {
            let first = Fdb { vtep: None, ..entry.clone() };
            let same = |old: &&Fdb| (&old.device, old.mac) == (&entry.device, entry.mac);
            let old: Vec<Fdb> = tables.fdb.range(first..).take_while(same).cloned().collect();
            for old in old {
                tables.fdb.remove(&old);
            }
            tables.fdb.insert(entry);
        }
        Step::DelFdb(entry) => {
            tables.fdb.remove(&entry);
        }
        Step::SetNeighbour { device, address, mac } => {
            tables.neighbours.insert((device, address), mac);
        }
        Step::DelNeighbour { device, address } => {
            tables.neighbours.remove(&(device, address));
        }
        Step::SetNexthop(id, leads) => {
            tables.nexthops.insert(id, FoundNexthop { ours: true, leads });
        }
        Step::DelNexthop(id) => {
            tables.nexthops.remove(&id);
        }
        Step::SetRoute(route) => {
            if let Some(old) = at_key(&tables.routes, route.key) {
                tables.routes.remove(&old);
            }
            tables.routes.insert(route);
        }
        Step::DelRoute(route) => {
            tables.routes.remove(&route);
        }
        Step::SetRule(rule) => {
            tables.rules.insert(rule);
        }
        Step::DelRule(rule) => {
            tables.rules.remove(&rule);
        }
    }
    Verdict::Taken
}

/// Whether the kernel tells of a setting that changes. Of others nothing is heard, so they are looked at.
pub(crate) fn is_told(setting: &Setting) -> bool {
    match setting.family {
        Family::V4 => matches!(setting.name, "forwarding" | "rp_filter"),
        Family::V6 => matches!(setting.name, "forwarding" | "force_forwarding"),
    }
}
