//! Edge: looks around on the host: reads what others have done to it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use limpet_api::config::Network;
use limpet_net_types::{Family, Range};
use limpet_rtnl::sysctl;
use limpet_rtnl::{OpenError, ReadError, Route, RouteFilter, RouteTarget, Socket};
use tokio::task::JoinError;

use super::files::Files;
use super::memory::Memory;
use super::programs;
use super::surroundings::{DefaultRoute, Overlay, PutBack, Surroundings, Underlay};
use crate::agent::Agent;
use crate::config::Mend;
use crate::drift::Drifts;
use crate::facts::{Choice, Seen};
use crate::layout::{device_name, group_of, is_device_name, is_veth_name};
use crate::view::View;

const TABLE_MAIN: u32 = 254;

/// The kernel's number of a route that it made of a router's advertisement.
const ADVERTISED: u8 = 9;

/// Settings of the whole host that say something.
const SETTINGS: [&str; 5] = [
    "ipv6/conf/all/disable_ipv6",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
    "ipv4/neigh/default/gc_thresh3",
    "ipv6/neigh/default/gc_thresh3",
];

/// Why nobody could look around.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SurveyError {
    /// No netlink socket.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A table was not read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A defect.
    #[error("reading or judging ended early")]
    Task(#[from] JoinError),
}

/// What is known before anybody looks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    networks: Vec<Overlay>,
    pools: Vec<Range>,
    peers: Vec<IpAddr>,
    choice: Choice,
    drifts: Vec<PutBack>,
    overruns: u64,
    uptime: Duration,
    mended: bool,
}

impl Known {
    /// What an agent knows.
    pub(crate) fn of(agent: &Agent) -> Self {
        let now = agent.now();
        let state = agent.state();
        Self {
            drifts: put_back(&state.drifts, now.at),
            overruns: agent.metrics.overruns(),
            uptime: now.uptime,
            ..Self::of_view(&state.view, agent.choice.clone(), &agent.config.mend)
        }
    }

    /// What is known of the cluster without an agent.
    pub(crate) fn of_view(view: &View, choice: Choice, mend: &[Mend]) -> Self {
        Self {
            networks: view.networks.values().map(overlay).collect(),
            pools: view.pools.values().map(|pool| pool.range).collect(),
            peers: view.hosts.values().filter_map(|host| host.underlay).collect(),
            choice,
            mended: mend.contains(&Mend::ForwardPolicy),
            ..Self::default()
        }
    }
}

fn overlay(network: &Network) -> Overlay {
    Overlay {
        name: network.name.to_string(),
        device: device_name(network.index),
        group: group_of(network.index),
        vni: network.vni.into(),
        port: network.port,
        mtu: network.mtu.map(Into::into),
    }
}

fn put_back(drifts: &Drifts, now: SystemTime) -> Vec<PutBack> {
    let since = |later: SystemTime, earlier| later.duration_since(earlier).unwrap_or_default();
    let drifts = drifts.last().map(|drift| PutBack {
        kind: drift.kind.name(),
        what: drift.what.clone(),
        times: drift.times,
        over: since(drift.last, drift.first),
        ago: since(now, drift.last),
    });
    drifts.collect()
}

/// Looks around again and again.
pub(crate) struct Surveyor {
    files: Files,
    memory: Memory,
}

impl Surveyor {
    /// One that reads files below `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self { files: Files::below(root), memory: Memory::default() }
    }

    /// Looks around.
    pub(crate) async fn look(&mut self, known: Known) -> Result<Surroundings, SurveyError> {
        let mut socket = Socket::open()?;
        let main = RouteFilter { table: TABLE_MAIN, protocol: 0 };
        let seen = Seen {
            links: socket.links().await?,
            addresses: socket.addresses(None).await?,
            main: socket.routes(main).await?,
        };
        let tunnels = socket.tunnels().await?;
        let mut filters = programs::filters().await;
        filters.mended = known.mended;
        let defaults = defaults(&seen);
        let devices =
            seen.links.iter().filter(|link| is_device_name(&link.name) || is_veth_name(&link.name));
        let devices: Vec<_> = devices.map(|link| (link.index, link.name.clone())).collect();
        let (files, advertised) = (self.files.clone(), defaults.clone());
        let read =
            tokio::task::spawn_blocking(move || Read::of(&files, &devices, &advertised)).await?;
        let uptime = known.uptime;
        Ok(Surroundings {
            underlay: underlay(&seen, &known.choice),
            underlay_chosen: known.choice.underlay.is_some(),
            kernel: read.kernel,
            networks: known.networks,
            pools: known.pools,
            peers: known.peers,
            tunnels,
            filters,
            settings: read.settings,
            defaults,
            has_ipv6: read.has_ipv6,
            neighbours_refused: read
                .neighbours_refused
                .map_or(0, |count| self.memory.refused.look(count, uptime)),
            managers: read.managers,
            drifts: known.drifts,
            overruns: self.memory.overruns.look(known.overruns, uptime),
            jumped: self.memory.clocks(SystemTime::now(), uptime),
        })
    }

    /// Reads other programs' rules again.
    pub(crate) async fn look_at_filters(around: &mut Surroundings) {
        let mended = around.filters.mended;
        around.filters = programs::filters().await;
        around.filters.mended = mended;
    }
}

/// What files said.
struct Read {
    kernel: String,
    has_ipv6: bool,
    settings: BTreeMap<String, String>,
    neighbours_refused: Option<u64>,
    managers: super::surroundings::Managers,
}

impl Read {
    fn of(files: &Files, devices: &[(u32, String)], defaults: &[DefaultRoute]) -> Self {
        let setting = |name: String| {
            // A device's name may have dots in it, and no slash.
            let path: Vec<&str> = name.split('/').collect();
            let value = sysctl::read(&path).ok()?;
            Some((name, value))
        };
        let of_host = SETTINGS.iter().map(|name| (*name).to_owned());
        let of_routes = defaults.iter().filter(|route| route.advertised).flat_map(|route| {
            ["accept_ra", "forwarding"].map(|name| format!("ipv6/conf/{}/{name}", route.device))
        });
        Self {
            kernel: files
                .text("proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim_end()
                .to_owned(),
            has_ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            settings: of_host.chain(of_routes).filter_map(setting).collect(),
            neighbours_refused: files.neighbours_refused(),
            managers: files.managers(devices),
        }
    }
}

fn underlay(seen: &Seen, choice: &Choice) -> Option<Underlay> {
    let reach = seen.reach(choice).ok()?;
    let at = seen.addresses.iter().find(|found| found.address.address == reach.underlay)?;
    let names = seen.names();
    let device = names.get(&at.address.device)?;
    Some(Underlay { address: reach.underlay, device: (*device).to_owned(), mtu: reach.mtu })
}

fn defaults(seen: &Seen) -> Vec<DefaultRoute> {
    let names = seen.names();
    let of = |route: &Route| {
        let RouteTarget::Device { index, .. } = route.target else { return None };
        Some(DefaultRoute {
            family: Family::of(route.destination.address()),
            device: (*names.get(&index)?).to_owned(),
            metric: route.metric,
            advertised: route.protocol == ADVERTISED,
        })
    };
    seen.main.iter().filter(|route| route.destination.length() == 0).filter_map(of).collect()
}
