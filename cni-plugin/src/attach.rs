//! Edge: the kernel's part: making a container's interface, and taking it away.
//!
//! Each namespace has one socket; everything is done from outside the container's.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use limpet_api::socket::Attach;
use limpet_net_types::{Family, Mac, host_prefix};
use limpet_rtnl::sysctl::{self, SysctlError};
use limpet_rtnl::{
    Address, LinkChange, Neighbour, Netns, NetnsError, NewVeth, OpenError, ReadError, Request,
    RequestError, Route, RouteFilter, RouteTarget, Scope, Socket, VethPeer,
};
use nix::errno::Errno;

use crate::bandwidth::Bandwidth;
use crate::error::{Code, Failure};
use crate::host_end::{HostEnd, dead_name};
use crate::part::{self, Parts};
use crate::result::gateway_of;
use crate::shape::{shape, unshape};

/// The protocol number of every route and neighbour entry that limpet makes on a host.
pub(crate) const PROTOCOL: u8 = 76;

/// The main table of a container, which is nobody's but the container's.
pub(crate) const MAIN: u32 = 254;

/// What routes inside a container are marked with: `boot`, as if its user had made them with `ip`.
pub(crate) const BOOT: u8 = 3;

/// Why an interface was not made, or not taken away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// There is no such namespace.
    #[error("there is no container's network namespace at CNI_NETNS={path}")]
    NoNetns { path: String, source: NetnsError },
    /// It cannot be used.
    #[error("the network namespace at CNI_NETNS={path} cannot be used")]
    Netns { path: String, source: NetnsError },
    /// It is the host's.
    #[error("the network namespace at CNI_NETNS={path} is the host's own")]
    OwnNetns { path: String },
    /// The name is taken inside.
    #[error("the container has an interface {ifname} already")]
    Exists { ifname: String },
    /// The name was taken inside meanwhile; addresses are held by now.
    #[error(
        "another program made interface {ifname} in the container while its addresses were claimed"
    )]
    Taken { ifname: String },
    /// The name is taken outside by something that is not limpet's to remove.
    #[error("the host has an interface {name} that is in the way")]
    InTheWay { name: String },
    /// The kernel gives no netlink socket.
    #[error("cannot speak to the kernel")]
    Open(#[from] OpenError),
    /// The kernel does not say what there is.
    #[error("cannot see the interfaces")]
    Read(#[from] ReadError),
    /// The kernel refuses.
    #[error("cannot make the interface")]
    Request(#[from] RequestError),
    /// A setting of the interface cannot be made.
    #[error("cannot set the interface up")]
    Sysctl(#[from] SysctlError),
    /// The interface vanished while it was made.
    #[error("interface {name} vanished while it was made")]
    Vanished { name: String },
}

impl AttachError {
    /// The failure that it is for a runtime.
    pub(crate) fn failure(&self) -> Failure {
        let code = match self {
            Self::NoNetns { .. } => Code::UnknownContainer,
            Self::Netns { .. } | Self::OwnNetns { .. } => Code::Environment,
            Self::Exists { .. } => Code::InterfaceExists,
            _ => Code::Kernel,
        };
        Failure::of(code, self)
    }
}

/// A container's network namespace, and a socket in it.
pub(crate) struct Container {
    netns: Netns,
    socket: Socket,
    /// Whether a new interface starts with IPv6 switched off there.
    starts_without_v6: bool,
}

impl Container {
    /// Opens the namespace at `path`, which must not be the plugin's own.
    pub(crate) fn open(path: &Path) -> Result<Self, AttachError> {
        let shown = || path.display().to_string();
        let netns = Netns::open(path).map_err(|source| match &source {
            NetnsError::Open { source: cause, .. } if cause.kind() != io::ErrorKind::NotFound => {
                AttachError::Netns { path: shown(), source }
            }
            _ => AttachError::NoNetns { path: shown(), source },
        })?;
        let own =
            Netns::current().map_err(|source| AttachError::Netns { path: shown(), source })?;
        if netns == own {
            return Err(AttachError::OwnNetns { path: shown() });
        }
        let runtime = tokio::runtime::Handle::current();
        // One thread for both: it is what costs most here.
        let opened = netns.run(|| {
            let _runtime = runtime.enter();
            let v6 = sysctl::read(&["ipv6", "conf", "default", "disable_ipv6"]);
            (Socket::open(), v6.map_or(true, |value| value != "0"))
        });
        let (socket, starts_without_v6) =
            opened.map_err(|source| AttachError::Netns { path: shown(), source })?;
        Ok(Self { netns, socket: socket?, starts_without_v6 })
    }

    /// The socket inside.
    pub(crate) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Refuses a name that an interface inside has.
    pub(crate) async fn refuse_existing(&mut self, ifname: &str) -> Result<(), AttachError> {
        match self.socket.link_named(ifname).await? {
            Some(_) => Err(AttachError::Exists { ifname: ifname.to_owned() }),
            None => Ok(()),
        }
    }

    /// The addresses of the interface that a route leads out of, which others can send to.
    async fn addresses_by(&mut self, route: Route) -> Result<Vec<IpAddr>, AttachError> {
        let RouteTarget::Device { index, .. } = route.target else { return Ok(Vec::new()) };
        let found = self.socket.addresses(Some(index)).await?;
        let global = found.into_iter().filter(|found| found.scope == Scope::Global);
        Ok(global.map(|found| found.address.address).collect())
    }

    /// Deletes the rules of an interface, which do not go with it.
    pub(crate) async fn forget_rules(&mut self, device: u32) -> Result<(), AttachError> {
        let rules = self.socket.rules().await?;
        let of_it: Vec<Request> = rules
            .into_iter()
            .filter(|rule| part::is_of(rule, device))
            .map(Request::DelRule)
            .collect();
        all(self.socket.batch(&of_it).await)
    }

    /// Switches IPv6 on for an interface where a new one has it off.
    fn switch_v6_on(&self, ifname: &str) -> Result<(), AttachError> {
        if !self.starts_without_v6 {
            return Ok(());
        }
        let switch = || sysctl::write(&["ipv6", "conf", ifname, "disable_ipv6"], "0");
        match self.netns.run(switch) {
            Ok(done) => Ok(done?),
            Err(source) => Err(AttachError::Netns { path: self.netns.to_string(), source }),
        }
    }
}

/// An interface to make.
pub(crate) struct Order<'a> {
    pub(crate) attach: &'a Attach,
    pub(crate) ifname: &'a str,
    pub(crate) bandwidth: Bandwidth,
    /// Whether it is to have the container's default route; where there is none yet if left open.
    pub(crate) default_route: Option<bool>,
}

impl Order<'_> {
    /// Makes the interface and returns what part of the container's traffic it has; when this returns, packets pass.
    ///
    /// On failure nothing of it is left.
    pub(crate) async fn carry_out(
        &self,
        host: &mut Socket,
        container: &mut Container,
    ) -> Result<Parts, AttachError> {
        self.make_pair(host, container).await?;
        match self.set_up(host, container).await {
            Ok(parts) => Ok(parts),
            Err(error) => {
                self.undo(host, container).await;
                Err(error)
            }
        }
    }

    /// Takes away what was made.
    pub(crate) async fn undo(&self, host: &mut Socket, container: &mut Container) {
        let name = &self.attach.host_ifname;
        let undone = async {
            if let Some(end) = HostEnd::find(host, name).await? {
                container.forget_rules(end.peer).await?;
                end.delete(host).await?;
            }
            if let Some(shaper) = unshape(host, name).await? {
                host.request(&Request::DelLink(shaper)).await?;
            }
            Ok::<(), AttachError>(())
        };
        // Why it is undone is what the runtime is told; DEL comes after this and tries again.
        if let Err(error) = undone.await {
            tracing::warn!(%error, interface = %name, "interface not undone");
        }
    }

    async fn make_pair(&self, host: &mut Socket, container: &Container) -> Result<(), AttachError> {
        let name = &self.attach.host_ifname;
        let pair = Request::NewVeth(NewVeth {
            name: name.clone(),
            mac: self.attach.gateway_mac,
            mtu: self.attach.mtu.into(),
            group: self.attach.group,
            peer: VethPeer {
                name: self.ifname.to_owned(),
                mac: self.attach.attachment.mac,
                netns: container.netns.clone(),
            },
        });
        match host.request(&pair).await {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                self.make_way(host).await?;
                Ok(host.request(&pair).await?)
            }
            other => Ok(other?),
        }
    }

    /// Renames a dead interface that has the name still: the same container is attached again before the
    /// agent has deleted what its last DEL left.
    async fn make_way(&self, host: &mut Socket) -> Result<(), AttachError> {
        let name = &self.attach.host_ifname;
        let Some(link) = host.link_named(name).await? else {
            return Err(AttachError::Taken { ifname: self.ifname.to_owned() });
        };
        if !HostEnd::of(&link).is_some_and(|end| end.is_dead) {
            return Err(AttachError::InTheWay { name: name.clone() });
        }
        let other = LinkChange { name: Some(dead_name(link.index)), ..LinkChange::of(link.index) };
        Ok(host.request(&Request::ChangeLink(other)).await?)
    }

    async fn set_up(
        &self,
        host: &mut Socket,
        container: &mut Container,
    ) -> Result<Parts, AttachError> {
        let name = &self.attach.host_ifname;
        let end = HostEnd::find(host, name)
            .await?
            .ok_or_else(|| AttachError::Vanished { name: name.clone() })?;
        self.set_host_sysctls()?;
        if self.has(Family::V6) {
            container.switch_v6_on(self.ifname)?;
        }
        // Outside first: an interface inside has carrier only when the other end is up.
        all(host.batch(&self.outside(end.index)).await)?;
        shape(host, self.attach, (&end, self.bandwidth)).await?;
        let main = RouteFilter { table: MAIN, protocol: 0 };
        let routes = container.socket.routes(main).await?;
        let parts = Parts::new(self.default_route, &routes);
        let (mut requests, mut last) = (Vec::new(), Vec::new());
        for family in Family::BOTH.into_iter().filter(|family| self.has(*family)) {
            let Some(before) = part::replaced_by(parts, family, &routes) else { continue };
            requests.extend(part::left_to(before, &container.addresses_by(before).await?));
            last.extend(part::out_of_the_way(before));
        }
        requests.extend(self.inside(end.peer, parts));
        requests.extend(last);
        all(container.socket.batch(&requests).await)?;
        Ok(parts)
    }

    fn has(&self, family: Family) -> bool {
        self.addresses().any(|address| Family::of(address) == family)
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.attach.attachment.addresses.iter().map(|held| held.address)
    }

    fn set_host_sysctls(&self) -> Result<(), AttachError> {
        let name = self.attach.host_ifname.as_str();
        for setting in host_settings(self.attach) {
            setting.set(name)?;
        }
        Ok(())
    }

    /// What makes the host's end carry: its owner's uid, and the way to each address.
    fn outside(&self, index: u32) -> Vec<Request> {
        let Attach { attachment, table, sources, .. } = self.attach;
        let mut requests = vec![
            Request::ChangeLink(LinkChange {
                alias: Some(attachment.uid.to_string()),
                no_link_local: true,
                ..LinkChange::of(index)
            }),
            Request::ChangeLink(LinkChange { up: Some(true), ..LinkChange::of(index) }),
        ];
        for (i, address) in self.addresses().enumerate() {
            requests.push(Request::SetNeighbour(outside_neighbour(index, address, attachment.mac)));
            let source = sources.get(i).copied().flatten();
            requests.push(Request::SetRoute(outside_route(*table, index, address, source)));
        }
        requests
    }

    /// What makes the container's end carry: its addresses, and what is its part by the host.
    fn inside(&self, index: u32, parts: Parts) -> Vec<Request> {
        let quiet = LinkChange { no_link_local: true, ..LinkChange::of(index) };
        let up = LinkChange { up: Some(true), ..LinkChange::of(index) };
        let mut requests = vec![Request::ChangeLink(quiet), Request::ChangeLink(up)];
        for address in self.addresses() {
            let length = Family::of(address).bits();
            let address = Address { device: index, address, length, no_dad: true };
            requests.push(Request::SetAddress(address));
        }
        for family in [Family::V4, Family::V6].into_iter().filter(|family| self.has(*family)) {
            if let Some(gateway) = gateway_of(self.attach, family) {
                requests.push(Request::SetNeighbour(inside_neighbour(
                    index,
                    gateway,
                    self.attach.gateway_mac,
                )));
                let of_family = (family, parts.of(family));
                requests.extend(part::requests(self.attach, index, of_family));
            }
        }
        requests
    }
}

/// A setting of the host's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// `ipv4` or `ipv6`.
    pub(crate) family: &'static str,
    pub(crate) name: &'static str,
    pub(crate) value: &'static str,
}

impl Setting {
    /// Its path below `/proc/sys/net`.
    pub(crate) fn path<'a>(&self, device: &'a str) -> [&'a str; 4] {
        [self.family, "conf", device, self.name]
    }

    fn set(&self, device: &str) -> Result<(), SysctlError> {
        let path = self.path(device);
        match self.name {
            // Writing it has effects where it does not change, too.
            "disable_ipv6" => sysctl::ensure(&path, self.value).map(|_| ()),
            // Kernels without IPv6; and those before 6.17, which forward everywhere or nowhere: the agent's to settle.
            "accept_ra" | "force_forwarding" => unless_missing(sysctl::write(&path, self.value)),
            _ => sysctl::write(&path, self.value),
        }
    }
}

/// The settings that the host's end of an attachment needs.
///
/// Forwarding is switched on for this interface alone, so that the host stays closed for others. A container sends from
/// its own addresses only; of IPv6 the agent's nftables table sees to that. And whatever its addresses, it could make
/// itself the host's router by announcing itself.
pub(crate) fn host_settings(attach: &Attach) -> impl Iterator<Item = Setting> + use<> {
    let has =
        |family| attach.attachment.addresses.iter().any(|held| Family::of(held.address) == family);
    let (v4, v6) = (has(Family::V4), has(Family::V6));
    let settings = [
        ("ipv4", "forwarding", "1", v4),
        ("ipv4", "rp_filter", "1", v4),
        ("ipv6", "accept_ra", "0", true),
        ("ipv6", "disable_ipv6", "0", v6),
        ("ipv6", "force_forwarding", "1", v6),
    ];
    let needed = settings.into_iter().filter(|(.., needed)| *needed);
    needed.map(|(family, name, value, _)| Setting { family, name, value })
}

/// The host's neighbour entry for a container's address: permanent, because nobody answers for it.
pub(crate) fn outside_neighbour(device: u32, address: IpAddr, mac: Mac) -> Neighbour {
    Neighbour { device, address, mac, protocol: PROTOCOL }
}

/// The host's route to a container's address.
pub(crate) fn outside_route(
    table: u32,
    device: u32,
    address: IpAddr,
    source: Option<IpAddr>,
) -> Route {
    Route {
        table,
        protocol: PROTOCOL,
        destination: host_prefix(address),
        target: RouteTarget::link(device),
        source,
        metric: 0,
    }
}

/// The container's neighbour entry for its gateway: permanent, because the host has no such address.
pub(crate) fn inside_neighbour(device: u32, gateway: IpAddr, mac: Mac) -> Neighbour {
    Neighbour { device, address: gateway, mac, protocol: 0 }
}

/// Takes a setting that the kernel does not have for one that needs no change.
fn unless_missing(written: Result<(), SysctlError>) -> Result<(), SysctlError> {
    match written {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The first failure of a batch, if there is one.
pub(crate) fn all(results: Vec<Result<(), RequestError>>) -> Result<(), AttachError> {
    results.into_iter().collect::<Result<(), _>>().map_err(AttachError::from)
}
