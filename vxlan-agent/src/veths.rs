//! Edge: the host's ends of containers' veth pairs: which incarnations have one, and the burial of the dead, and of the
//! devices that held containers back which are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use limpet_net_types::{Uid, shaper_ifname};
use limpet_rtnl::{
    Link, LinkChange, LinkKind, OpenError, ReadError, Request, RequestError, Socket,
};
use tokio::sync::Mutex;
use tracing::warn;

use crate::layout::{
    GROUP_OF_THE_DEAD, GROUP_OF_THE_SEVERED, VETH_PREFIX, is_shaper_name, is_veth_name,
};

/// Why it is not known which interfaces there are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VethError {
    /// No netlink socket.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The devices were not listed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The kernel did not delete.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// The containers' interfaces. Not the reconciler's socket, which is busy for as long as a pass takes.
#[derive(Default)]
pub(crate) struct Veths {
    kept: Mutex<Option<Socket>>,
    /// Whether it was said that somebody else uses the group of the dead.
    warned: AtomicBool,
}

impl Veths {
    /// The incarnations that have an interface, the dead not counted.
    pub(crate) async fn living(&self) -> Result<BTreeSet<Uid>, VethError> {
        Ok(self.interfaces().await?.into_keys().collect())
    }

    /// The interfaces of incarnations, the dead not counted: all of them, or an error.
    pub(crate) async fn interfaces(&self) -> Result<Interfaces, VethError> {
        let mut kept = self.kept.lock().await;
        let mut socket = kept.take().map_or_else(Socket::open, Ok)?;
        let links = socket.links().await?;
        *kept = Some(socket);
        Ok(links.iter().filter_map(living).map(|(uid, link)| (uid, Interface::of(link))).collect())
    }

    /// Takes the containers of these incarnations off the network, as far as they have an interface: it is set down, which
    /// takes its routes, and leaves its network's group. Returns which there were.
    pub(crate) async fn sever(&self, uids: &BTreeSet<Uid>) -> Result<BTreeSet<Uid>, VethError> {
        let mut socket = Socket::open()?;
        let links = socket.links().await?;
        let meant = links.iter().filter_map(living).filter(|(uid, _)| uids.contains(uid));
        let (severed, requests): (BTreeSet<Uid>, Vec<Request>) = meant
            .map(|(uid, link)| {
                let (up, group) = (Some(false), Some(GROUP_OF_THE_SEVERED));
                (uid, Request::ChangeLink(LinkChange { up, group, ..LinkChange::of(link.index) }))
            })
            .unzip();
        for (uid, result) in severed.iter().zip(socket.batch(&requests).await) {
            if let Err(error) = result {
                // One that went meanwhile is off the network as well.
                let left = socket.links().await?;
                if left.iter().filter_map(living).any(|(of, _)| of == *uid) {
                    return Err(error.into());
                }
            }
        }
        Ok(severed)
    }

    /// Deletes the interfaces that only wait for it, all in one message where nothing else is in their group.
    pub(crate) async fn bury(&self) -> Result<(), VethError> {
        // A socket of its own: the kernel takes 20 ms and more, and ADD asks for the living meanwhile.
        let mut socket = Socket::open()?;
        let links = socket.links().await?;
        let orphans: Vec<_> = orphans(&links).map(|link| Request::DelLink(link.index)).collect();
        let done = socket.batch(&orphans).await;
        done.into_iter().collect::<Result<(), _>>()?;
        let (dead, foreign): (Vec<&Link>, Vec<&Link>) = links
            .iter()
            .filter(|link| link.group == GROUP_OF_THE_DEAD)
            .partition(|link| is_dead(link));
        let Some(stranger) = foreign.first() else {
            if !dead.is_empty() {
                socket.request(&Request::DelLinkGroup(GROUP_OF_THE_DEAD)).await?;
            }
            return Ok(());
        };
        if !self.warned.swap(true, Ordering::Relaxed) {
            warn!(
                interface = stranger.name,
                group = GROUP_OF_THE_DEAD,
                "an interface that is not limpet's is in the group of those to delete: it stays, and they are deleted \
                 one by one, which is slower; put it into another group"
            );
        }
        let one_by_one: Vec<_> = dead.iter().map(|link| Request::DelLink(link.index)).collect();
        let results = socket.batch(&one_by_one).await;
        Ok(results.into_iter().collect::<Result<(), _>>()?)
    }
}

/// The interfaces of incarnations, as found.
pub(crate) type Interfaces = BTreeMap<Uid, Interface>;

/// The host's end of a container's veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) up: bool,
    /// Whether its container was taken off the network.
    pub(crate) severed: bool,
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    /// The index of the other end, in the container.
    pub(crate) peer: u32,
    /// The number here of the container's network namespace.
    pub(crate) netns: Option<u32>,
}

impl Interface {
    fn of(link: &Link) -> Self {
        let severed = link.group == GROUP_OF_THE_SEVERED;
        let (peer, netns) = match link.kind {
            LinkKind::Veth(veth) => (veth.peer, veth.peer_netns),
            _ => (0, None),
        };
        let (name, up, index, mtu) = (link.name.clone(), link.up, link.index, link.mtu);
        Self { name, up, severed, index, mtu, peer, netns }
    }
}

/// The incarnation whose interface this is, if it is one and not dead.
fn living(link: &Link) -> Option<(Uid, &Link)> {
    let veth = is_veth_name(&link.name) && matches!(link.kind, LinkKind::Veth(_));
    let uid = link.alias.as_deref()?.parse().ok()?;
    (veth && link.group != GROUP_OF_THE_DEAD).then_some((uid, link))
}

/// Whether any interface is there only to be deleted.
pub(crate) fn any_to_bury(links: &[Link]) -> bool {
    links.iter().any(is_dead) || orphans(links).next().is_some()
}

/// Whether an interface is a container's that waits for its deletion.
fn is_dead(link: &Link) -> bool {
    let ours = match &link.kind {
        LinkKind::Veth(_) => is_veth_name(&link.name) || is_dead_name(&link.name),
        kind => is_ifb(kind) && (is_shaper_name(&link.name) || is_dead_name(&link.name)),
    };
    link.group == GROUP_OF_THE_DEAD && ours
}

fn is_ifb(kind: &LinkKind) -> bool {
    matches!(kind, LinkKind::Other(kind) if kind == "ifb")
}

/// Whether a device holds a container back in what it sends. The plugin makes it after the host's end, and it does not go
/// with that one.
fn is_shaper(link: &Link) -> bool {
    is_shaper_name(&link.name) && is_ifb(&link.kind)
}

/// The devices of containers that are gone without a DEL, or whose DEL did not come to its end.
fn orphans(links: &[Link]) -> impl Iterator<Item = &Link> {
    let ends: BTreeMap<String, Uid> = links
        .iter()
        .filter_map(living)
        .map(|(uid, link)| (shaper_ifname(&link.name), uid))
        .collect();
    let has_end = move |link: &Link| match (ends.get(&link.name), &link.alias) {
        // One that is just being made has no uid yet.
        (Some(uid), Some(alias)) => *alias == uid.to_string(),
        (end, _) => end.is_some(),
    };
    let shapers = links.iter().filter(|link| is_shaper(link) && link.group != GROUP_OF_THE_DEAD);
    shapers.filter(move |link| !has_end(link))
}

/// Whether the plugin gives this name to the dead whose name it needs.
fn is_dead_name(name: &str) -> bool {
    let index = name.strip_prefix(VETH_PREFIX).and_then(|rest| rest.strip_prefix('x'));
    index.is_some_and(|index| index.parse::<u32>().is_ok())
}

/// Whether a network namespace is mounted at this path.
///
/// A plain file of the name is what unmounting leaves behind. Whatever else cannot be looked at counts as there:
/// an attachment is not ended by an error.
pub(crate) fn netns_exists(path: &str) -> bool {
    let of_namespaces = std::fs::metadata("/proc/self/ns/net").map(|own| own.dev());
    match (std::fs::metadata(path), of_namespaces) {
        (Ok(found), Ok(device)) => found.dev() == device,
        (Err(error), _) => error.kind() != std::io::ErrorKind::NotFound,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: LinkKind, alias: Option<u128>) -> Link {
        Link {
            index: 7,
            name: name.to_owned(),
            mac: None,
            mtu: 1450,
            group: 0,
            alias: alias.map(|bits| Uid::from_bits(bits).to_string()),
            up: true,
            carrier: true,
            kind,
        }
    }

    #[test]
    fn a_device_that_limits_is_buried_when_its_container_is_gone_and_never_before() {
        let veth = || LinkKind::Veth(limpet_rtnl::Veth { peer: 8, peer_netns: Some(0) });
        let ifb = || LinkKind::Other("ifb".to_owned());
        let end = |alias| link("lc0123456789a", veth(), alias);
        let shaper = |alias| link("lb0123456789a", ifb(), alias);
        let dead = Link { group: GROUP_OF_THE_DEAD, ..end(Some(1)) };
        for (links, bury) in [
            (vec![end(Some(1)), shaper(Some(1))], false),
            (vec![end(Some(1)), shaper(None)], false),
            (vec![end(Some(2)), shaper(Some(1))], true),
            (vec![shaper(Some(1))], true),
            (vec![shaper(None)], true),
            (vec![dead.clone(), shaper(Some(1))], true),
            (vec![dead], true),
            (vec![Link { group: GROUP_OF_THE_DEAD, ..shaper(Some(1)) }], true),
            // Somebody else's.
            (vec![link("lb0123456789a", veth(), Some(1)), link("lbx", ifb(), Some(1))], false),
            (vec![link("ifb0", ifb(), None)], false),
        ] {
            assert_eq!(any_to_bury(&links), bury, "{links:?}");
        }
    }

    #[test]
    fn a_namespace_is_one_only_where_it_is_mounted() {
        assert!(netns_exists("/proc/self/ns/net"));
        assert!(!netns_exists("/proc/self/status"));
        assert!(!netns_exists("/run/netns/there-is-none-of-this-name"));
    }
}
