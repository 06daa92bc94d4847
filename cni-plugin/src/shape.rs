//! Edge: holding a container back to its bandwidth. All of it is on the host's side, where the container cannot lift it.
//!
//! What the container receives leaves the host's end, whose root is a token bucket. What it sends arrives at the host's
//! end, where the kernel shapes nothing, so it takes a detour by an IFB device of this container's own. That one does not
//! go with the veth pair: DEL puts it among the dead, and the agent also finds those whose container died without one.

use limpet_api::socket::Attach;
use limpet_net_types::shaper_ifname;
use limpet_rtnl::{
    Detour, FoundTbf, Link, LinkChange, LinkKind, NewIfb, ReadError, Request, Socket,
};
use nix::errno::Errno;

use crate::attach::{AttachError, all};
use crate::bandwidth::Bandwidth;
use crate::host_end::{DEAD, HostEnd, dead_name};

/// What the kernel has of a container's limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shaping {
    /// The token buckets at the roots of the host's end and of the IFB device.
    pub(crate) buckets: Vec<FoundTbf>,
    /// The detours of what the host's end receives.
    pub(crate) detours: Vec<Detour>,
    /// The IFB device.
    pub(crate) shaper: Option<Link>,
}

/// Holds a container back before its end comes up.
pub(crate) async fn shape(
    host: &mut Socket,
    attach: &Attach,
    (end, bandwidth): (&HostEnd, Bandwidth),
) -> Result<(), AttachError> {
    let mtu = attach.mtu.into();
    if let Some(limit) = bandwidth.ingress {
        host.request(&Request::SetTbf(limit.tbf(end.index, mtu))).await?;
    }
    let Some(limit) = bandwidth.egress else { return Ok(()) };
    let shaper = make(host, attach).await?;
    let detour = Detour { from: end.index, through: shaper };
    let change = |change: LinkChange| Request::ChangeLink(change);
    let alias = Some(attach.attachment.uid.to_string());
    let requests = [
        change(LinkChange { alias, no_link_local: true, ..LinkChange::of(shaper) }),
        Request::SetTbf(limit.tbf(shaper, mtu)),
        change(LinkChange { up: Some(true), ..LinkChange::of(shaper) }),
        Request::NewIngress(detour),
        Request::AddDetour(detour),
    ];
    all(host.batch(&requests).await)
}

/// Makes the IFB device and returns its index.
async fn make(host: &mut Socket, attach: &Attach) -> Result<u32, AttachError> {
    let name = shaper_ifname(&attach.host_ifname);
    let new = Request::NewIfb(NewIfb { name: name.clone(), mtu: attach.mtu.into() });
    match host.request(&new).await {
        // The same container is attached again before the agent has deleted what there was before.
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            let Some(old) = find(host, &name).await? else {
                return Err(AttachError::InTheWay { name });
            };
            all(host.batch(&bury(old.index, Some(dead_name(old.index)))).await)?;
            host.request(&new).await?;
        }
        other => other?,
    }
    let made = find(host, &name).await?;
    made.map(|link| link.index).ok_or(AttachError::Vanished { name })
}

/// Takes the limits of a host's end out of use: the IFB device becomes one of the dead. Returns its index, if there
/// is one; the rest goes with the host's end.
pub(crate) async fn unshape(
    host: &mut Socket,
    host_ifname: &str,
) -> Result<Option<u32>, AttachError> {
    let Some(shaper) = find(host, &shaper_ifname(host_ifname)).await? else { return Ok(None) };
    match all(host.batch(&bury(shaper.index, None)).await) {
        Err(AttachError::Request(error)) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        done => done.map(|()| Some(shaper.index)),
    }
}

/// Reads what there is of a container's limits.
pub(crate) async fn read(
    host: &mut Socket,
    end: &Link,
    bandwidth: Bandwidth,
) -> Result<Shaping, ReadError> {
    if bandwidth == Bandwidth::default() {
        return Ok(Shaping::default());
    }
    Ok(Shaping {
        buckets: host.tbfs().await?,
        detours: host.detours(end.index).await?,
        shaper: find(host, &shaper_ifname(&end.name)).await?,
    })
}

/// A device of this name, if it is of the kind that shapes.
async fn find(host: &mut Socket, name: &str) -> Result<Option<Link>, ReadError> {
    let found = host.link_named(name).await?;
    Ok(found.filter(|link| matches!(&link.kind, LinkKind::Other(kind) if kind == "ifb")))
}

fn bury(index: u32, name: Option<String>) -> [Request; 1] {
    let dead = LinkChange { group: Some(DEAD), up: Some(false), name, ..LinkChange::of(index) };
    [Request::ChangeLink(dead)]
}
