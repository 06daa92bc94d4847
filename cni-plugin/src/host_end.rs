//! Edge: the host's end of an attachment's veth pair: whose it is, and its end.

use limpet_net_types::Uid;
use limpet_rtnl::{Link, LinkChange, LinkKind, ReadError, Request, RequestError, Socket};
use nix::errno::Errno;

use crate::attach::{AttachError, Container, all};

/// The interface group of host ends that are dead: the agent deletes them all in one message.
pub(crate) const DEAD: u32 = 4096;

/// The interface groups of live host ends: one for each network, by its index.
const LIVE: std::ops::RangeInclusive<u32> = DEAD + 1..=DEAD + 4095;

/// The host's end of an attachment's veth pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostEnd {
    pub(crate) index: u32,
    /// The index of the other end, in the container.
    pub(crate) peer: u32,
    /// The incarnation; none if whoever made it died before it was written down.
    pub(crate) uid: Option<Uid>,
    /// Whether it waits for its deletion.
    pub(crate) is_dead: bool,
}

impl HostEnd {
    /// Reads from a device whether it is one, and whose.
    pub(crate) fn of(link: &Link) -> Option<Self> {
        let LinkKind::Veth(veth) = link.kind else { return None };
        let uid = link.alias.as_deref().and_then(|alias| alias.parse().ok());
        let is_dead = link.group == DEAD;
        let is_ours = uid.is_some() || is_dead || LIVE.contains(&link.group);
        is_ours.then_some(Self { index: link.index, peer: veth.peer, uid, is_dead })
    }

    /// Finds it by its name.
    pub(crate) async fn find(host: &mut Socket, name: &str) -> Result<Option<Self>, ReadError> {
        Ok(host.link_named(name).await?.as_ref().and_then(Self::of))
    }

    /// Cuts the container off and gives the interface up for deletion.
    ///
    /// Down takes the host's routes and neighbour entries for it along, IPv4 and IPv6.
    pub(crate) async fn bury(&self, host: &mut Socket) -> Result<(), RequestError> {
        let dead = LinkChange { group: Some(DEAD), up: Some(false), ..LinkChange::of(self.index) };
        match host.request(&Request::ChangeLink(dead)).await {
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Takes the other end out of use, and its name free for the next ADD, if it is where it is said to be.
    pub(crate) async fn free_name(
        &self,
        container: &mut Container,
        ifname: &str,
    ) -> Result<(), AttachError> {
        let Some(link) = container.socket().link_named(ifname).await? else { return Ok(()) };
        let LinkKind::Veth(veth) = link.kind else { return Ok(()) };
        if link.index != self.peer || veth.peer != self.index {
            return Ok(());
        }
        container.forget_rules(link.index).await?;
        let down = LinkChange { up: Some(false), ..LinkChange::of(link.index) };
        let name = LinkChange { name: Some(dead_name(link.index)), ..LinkChange::of(link.index) };
        all(container.socket().batch(&[down, name].map(Request::ChangeLink)).await)
    }

    /// Deletes it, and the other end with it. Takes about 20 ms.
    pub(crate) async fn delete(&self, host: &mut Socket) -> Result<(), RequestError> {
        host.request(&Request::DelLink(self.index)).await
    }
}

/// A name that no live interface has: indexes are never given twice, and `x` is no hexadecimal digit.
pub(crate) fn dead_name(index: u32) -> String {
    format!("lcx{index}")
}
