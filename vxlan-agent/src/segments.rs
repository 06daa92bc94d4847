//! Pure: the networks that this host has a part in, and what sets them apart there: device, group, tables, mark.
//!
//! Networks of the shared address space are routed by the addresses of their packets. One with an address space of
//! its own may have the same addresses as another, so its packets are told apart by the interface that they come
//! from: nftables marks them by its group, and rules lead them by their mark to the network's own table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use limpet_api::config::{Host, Network};
use limpet_net_types::{Mtu, NetworkName, Prefix, Range};

use crate::desired::{HostFacts, LayoutProblem, mtu_of};
use crate::layout::{TABLE_OVERLAY, device_name, group_of, hosts_table, own_table};
use crate::view::View;

/// A network on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) network: &'a Network,
    /// The name of its VXLAN device.
    pub(crate) device: String,
    pub(crate) mtu: Mtu,
    /// The ranges of its pools.
    pub(crate) pools: Vec<Range>,
    /// What sets an address space of its own apart.
    pub(crate) own: Option<OwnSpace>,
}

/// What sets an address space apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnSpace {
    /// What its packets are marked with.
    pub(crate) mark: u32,
    /// Whether no other network of this host has addresses of its pools, so that it is clear whom the host means.
    pub(crate) alone: bool,
}

impl Segment<'_> {
    /// The interface group of its devices.
    pub(crate) fn group(&self) -> u32 {
        group_of(self.network.index)
    }

    /// The table of its blocks, strays and containers.
    pub(crate) fn table(&self) -> u32 {
        table_of(self.network)
    }

    /// The table of the hosts that its containers reach.
    pub(crate) fn hosts_table(&self) -> u32 {
        if self.own.is_some() { self.table() } else { hosts_table(self.network.index) }
    }

    /// Whether it is of the shared address space.
    pub(crate) fn is_shared(&self) -> bool {
        self.own.is_none()
    }

    /// Its pools as prefixes.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.pools.iter().flat_map(|range| range.prefixes())
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.pools.iter().any(|pool| other.pools.iter().any(|theirs| pool.overlaps(*theirs)))
    }
}

/// The table of a network's blocks, strays and containers.
pub(crate) fn table_of(network: &Network) -> u32 {
    if network.own_space { own_table(network.index) } else { TABLE_OVERLAY }
}

/// The ranges of a network's pools, in the order of their names.
pub(crate) fn pools_of(view: &View, network: &NetworkName) -> Vec<Range> {
    let pools = view.pools.values().filter(|pool| pool.network == *network);
    pools.map(|pool| pool.range).collect()
}

/// The networks that a host with this underlay has a part in, and why it has none in others that it is a member of.
pub(crate) fn segments<'a>(
    view: &'a View,
    facts: &HostFacts,
    (host, underlay): (&Host, IpAddr),
) -> (BTreeMap<NetworkName, Segment<'a>>, Vec<LayoutProblem>) {
    let (mut segments, mut problems) = (BTreeMap::new(), Vec::new());
    for network in view.networks.values().filter(|network| host.is_member_of(network)) {
        let name = network.name.clone();
        let no_device = |reason: String| LayoutProblem::NoDevice { network: name.clone(), reason };
        let mtu = mtu_of(network, facts, underlay);
        let mut own = None;
        if network.own_space {
            let Some(mark) = facts.mark_mask.mark_of(network.index) else {
                let (index, mask) = (network.index, facts.mark_mask);
                problems.push(no_device(format!(
                    "its number {index} does not fit into the mark's bits {mask}: give the agent a wider --mark-mask"
                )));
                continue;
            };
            own = Some(OwnSpace { mark, alone: true });
        }
        let (device, pools) = (device_name(network.index), pools_of(view, &name));
        segments.insert(name, Segment { network, device, mtu, pools, own });
    }
    problems.extend(part_with_overlapping(&mut segments));
    (segments, problems)
}

/// Takes away what cannot be beside the shared space, and notes which spaces cannot be told apart by addresses.
///
/// The packets of two spaces of their own have different marks. Those of the shared one have none, so that they need
/// no nftables; and a packet that has lost its mark must not be taken for one of theirs.
fn part_with_overlapping(segments: &mut BTreeMap<NetworkName, Segment<'_>>) -> Vec<LayoutProblem> {
    let mut problems = Vec::new();
    let all = segments.clone();
    for (name, segment) in &all {
        let others = || all.values().filter(|other| other.network.name != *name);
        let mut overlapping = others().filter(|other| segment.overlaps(other));
        if let Some(own) = segment.own {
            if let Some(other) = overlapping.clone().find(|other| other.is_shared()) {
                let other = &other.network.name;
                let reason = format!(
                    "its pools overlap those of network {other}, which is of the shared address space: take this host out of one of the two"
                );
                problems.push(LayoutProblem::NoDevice { network: name.clone(), reason });
                segments.remove(name);
            } else if overlapping.next().is_some() {
                let own = Some(OwnSpace { alone: false, ..own });
                segments.insert(name.clone(), Segment { own, ..segment.clone() });
            }
        }
    }
    problems
}
