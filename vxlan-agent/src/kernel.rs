//! Edge: reads the kernel's entries, all of them or an error, and carries out steps in batches.
//!
//! It decides nothing: what is to be is [`crate::plan`]'s. Devices have indexes only here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use limpet_net_types::Family;
use limpet_rtnl::sysctl::{self, SysctlError};
use limpet_rtnl::{
    FdbEntry, Link, LinkChange, OpenError, ReadError, Request, RequestError, RouteFilter, Socket,
};
use tokio::task::JoinError;
use tracing::debug;

use crate::desired::{Desired, Forwarding6, Others, device_settings};
use crate::facts::Seen;
use crate::filter::{Filter, FilterError};
use crate::layout::{
    Fdb, FoundNexthop, PROTOCOL, Setting, Tables, is_device_name, is_own_table, is_veth_name,
};
use crate::mirror::{Mirror, is_told};
use crate::nft::is_closed6;
use crate::resolve::is_known;
use crate::step::Step;
use crate::translate::{
    TranslateError, found_route, found_rule, leads, new_vxlan, request, take_links,
};

const TABLE_MAIN: u32 = 254;

/// Why the kernel's entries are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// No netlink socket.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A table was not read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The nftables table was not read.
    #[error("cannot read the nftables table")]
    Filter(#[from] FilterError),
    /// A setting was not read.
    #[error(transparent)]
    Setting(#[from] SysctlError),
    /// A defect.
    #[error("reading settings ended early")]
    Task(#[from] JoinError),
}

/// A step that was not carried out.
#[derive(Debug, thiserror::Error)]
#[error("cannot carry out `{step}`")]
pub(crate) struct StepFailed {
    pub(crate) step: Step,
    source: StepError,
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Setting(#[from] SysctlError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Translate(#[from] TranslateError),
    #[error(transparent)]
    Task(#[from] JoinError),
}

/// Whether the nftables table is read again, which costs a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is.
    Again,
    /// As it was last time: what woke the agent cannot have changed it.
    Remembered,
}

/// What was read of nftables.
#[derive(Clone, Debug)]
struct Filtering {
    /// Limpet's table, if it is there.
    table: Option<String>,
    /// Whether any program translates destinations.
    translates: bool,
}

/// The kernel of the network namespace that the program runs in.
pub(crate) struct Kernel {
    socket: Socket,
    filter: Filter,
    /// What was read last, unless it has been written since.
    filtering: Option<Filtering>,
    /// Whether this program has seen the host not forward IPv6 of its own.
    closed6: bool,
}

impl Kernel {
    /// Opens the way to the kernel.
    pub(crate) fn open() -> Result<Self, KernelError> {
        Ok(Self {
            socket: Socket::open()?,
            filter: Filter::default(),
            filtering: None,
            closed6: false,
        })
    }

    /// Reads all of limpet's entries but for the settings, and what the host is.
    ///
    /// What should be is made out after it and from it: who plans for an older state of the cluster than the kernel's
    /// takes the route of a container that was made in between for wrong.
    pub(crate) async fn dump(&mut self, look: Look) -> Result<Mirror, KernelError> {
        let mut seen = self.seen().await?;
        let tables = self.tables(&mut seen, look).await?;
        Ok(Mirror { seen, tables, ..Mirror::default() })
    }

    /// Reads devices, addresses and the main table.
    pub(crate) async fn seen(&mut self) -> Result<Seen, KernelError> {
        let main = RouteFilter { table: TABLE_MAIN, protocol: 0 };
        Ok(Seen {
            links: self.socket.links().await?,
            addresses: self.socket.addresses(None).await?,
            main: self.socket.routes(main).await?,
        })
    }

    /// Reads limpet's entries; updates the devices of `seen`.
    ///
    /// The plugin changes the kernel meanwhile. Devices are listed last: what was found before on one that is
    /// not there any more has gone with it, and must not be taken for something of nobody's.
    async fn tables(&mut self, seen: &mut Seen, look: Look) -> Result<Tables, KernelError> {
        let ruleset = self.filtering(look).await?.table;
        let mut fdb = Vec::new();
        for link in seen.links.iter().filter(|link| is_device_name(&link.name)) {
            fdb.extend(self.socket.fdb(link.index).await?);
        }
        let neighbours = self.socket.neighbours(None).await?;
        let nexthops = self.socket.nexthops().await?;
        // Of all tables: that of a network which is gone is known by nothing else.
        let mut routes = self.socket.routes(RouteFilter { table: 0, protocol: PROTOCOL }).await?;
        routes.retain(|route| is_own_table(route.table));
        let rules = self.socket.rules().await?;
        seen.links = self.socket.links().await?;

        let mut tables = Tables { ruleset, ..Tables::default() };
        let names = &seen.names();
        let name = |index: u32| names.get(&index).map(|name| (*name).to_owned());
        take_links(&mut tables, seen);
        for FdbEntry { device, mac, vtep, .. } in fdb {
            tables.fdb.extend(name(device).map(|device| Fdb { device, mac, vtep }));
        }
        for found in neighbours {
            let device = name(found.device);
            let ours = device.filter(|name| is_device_name(name) || is_veth_name(name));
            if let (Some(device), Some(entry)) = (ours, found.as_permanent()) {
                tables.neighbours.insert((device, entry.address), entry.mac);
            }
        }
        for found in nexthops {
            let ours = found.protocol == PROTOCOL;
            let leads = leads(&found.kind, names);
            tables.nexthops.insert(found.id, FoundNexthop { ours, leads });
        }
        tables.routes = routes.iter().filter_map(|route| found_route(route, names)).collect();
        let ours = rules.into_iter().filter(|rule| rule.protocol == PROTOCOL);
        tables.rules = ours.map(found_rule).collect();
        Ok(tables)
    }

    /// How the kernel can be told to forward IPv6.
    pub(crate) async fn forwarding(&mut self, seen: &Seen) -> Result<Forwarding6, KernelError> {
        let setting =
            |device: &str, name| Setting { family: Family::V6, device: device.to_owned(), name };
        if !read_settings(vec![setting("all", "force_forwarding")]).await?.is_empty() {
            return Ok(Forwarding6::PerDevice);
        }
        let names = seen.links.iter().map(|link| link.name.as_str());
        let foreign = names.filter(|name| !is_device_name(name) && !is_veth_name(name));
        let accept = foreign.map(|name| setting(name, "accept_ra")).collect();
        let accept = read_settings(accept).await?.into_iter();
        // Also those that were told before: they are to stay told.
        let accept = accept.filter(|(_, value)| value == "1" || value == "2");
        let accept_ra = accept.map(|(setting, _)| setting.device).collect();
        let all = read_settings(vec![setting("all", "forwarding")]).await?;
        // Once limpet has switched forwarding on, its table is what tells an earlier router from others.
        self.closed6 |= all.iter().any(|(_, value)| value == "0")
            || self
                .filtering(Look::Remembered)
                .await?
                .table
                .is_some_and(|table| is_closed6(&table));
        Ok(Forwarding6::Global { accept_ra, router: !self.closed6 })
    }

    /// What other programs and operators have decided of all packets.
    pub(crate) async fn others(&mut self) -> Result<Others, KernelError> {
        let (family, device) = (Family::V4, "all".to_owned());
        let filter = read_settings(vec![Setting { family, device, name: "rp_filter" }]).await?;
        let loose4 = filter.iter().any(|(_, value)| value == "2");
        let translate = self.filtering(Look::Remembered).await?.translates;
        Ok(Others { translate, loose4 })
    }

    /// Whether somebody translated destinations when that was looked at last.
    pub(crate) fn knows_of_translation(&self) -> bool {
        self.filtering.as_ref().is_some_and(|known| known.translates)
    }

    async fn filtering(&mut self, look: Look) -> Result<Filtering, FilterError> {
        if let (Look::Remembered, Some(known)) = (look, &self.filtering) {
            return Ok(known.clone());
        }
        let table = self.filter.read().await?;
        let found = Filtering { table, translates: self.filter.translates().await? };
        self.filtering = Some(found.clone());
        Ok(found)
    }

    /// Carries out steps in their order. One that fails stops none of those after it.
    pub(crate) async fn carry_out(&mut self, links: &[Link], steps: &[Step]) -> Vec<StepFailed> {
        let mut indexes: BTreeMap<String, u32> =
            links.iter().map(|link| (link.name.clone(), link.index)).collect();
        let mut failed = Vec::new();
        let mut rest = steps;
        for step in steps {
            debug!(%step, "carrying out");
        }
        while let Some(first) = rest.first() {
            let batch = rest.iter().take_while(|step| is_message(step)).count();
            if batch > 0 {
                failed.extend(self.send(&indexes, &rest[..batch]).await);
                rest = &rest[batch..];
                continue;
            }
            if let Err(source) = self.carry_out_one(&mut indexes, first).await {
                failed.push(StepFailed { step: first.clone(), source });
            }
            rest = &rest[1..];
        }
        failed
    }

    async fn send(&mut self, indexes: &BTreeMap<String, u32>, steps: &[Step]) -> Vec<StepFailed> {
        let mut failed = Vec::new();
        let mut requests = Vec::with_capacity(steps.len());
        let mut sent = Vec::with_capacity(steps.len());
        for step in steps {
            match request(step, indexes) {
                Ok(request) => {
                    requests.push(request);
                    sent.push(step);
                }
                Err(error) => failed.push(StepFailed { step: step.clone(), source: error.into() }),
            }
        }
        let results = self.socket.batch(&requests).await;
        let refused = sent.into_iter().zip(results).filter_map(|(step, result)| {
            let source = StepError::Request(result.err()?);
            Some(StepFailed { step: step.clone(), source })
        });
        failed.extend(refused);
        failed
    }

    async fn carry_out_one(
        &mut self,
        indexes: &mut BTreeMap<String, u32>,
        step: &Step,
    ) -> Result<(), StepError> {
        match step {
            Step::NewDevice { name, device, anew } => {
                if let Some(old) = indexes.remove(name).filter(|_| *anew) {
                    self.socket.request(&Request::DelLink(old)).await?;
                }
                self.socket.request(&Request::NewVxlan(new_vxlan(name, device)?)).await?;
                let link = self.socket.link_named(name).await?;
                let link = link.ok_or_else(|| TranslateError::NoDevice(name.clone()))?;
                indexes.insert(name.clone(), link.index);
                // A message of its own: in one message with `up` it is read too late, and the kernel makes
                // a link-local address and asks the overlay who else has it.
                let quiet = LinkChange { no_link_local: true, ..LinkChange::of(link.index) };
                self.socket.request(&Request::ChangeLink(quiet)).await?;
            }
            Step::SetSetting(setting, value) => {
                let (setting, value) = (setting.clone(), value.clone());
                let written = move || sysctl::ensure(&setting.path(), &value);
                tokio::task::spawn_blocking(written).await??;
            }
            Step::SetRuleset(ruleset) => {
                // Whatever becomes of it, the next pass looks.
                self.filtering = None;
                self.filter.replace(ruleset).await?;
            }
            _ => unreachable!("every other step is a message"),
        }
        Ok(())
    }
}

/// Whether a step is one netlink message, and so can go with others.
fn is_message(step: &Step) -> bool {
    !matches!(step, Step::NewDevice { .. } | Step::SetSetting(..) | Step::SetRuleset(_))
}

/// The settings that matter: those that are wanted, and those of the containers that are there.
fn settings_of(desired: &Desired, found: &Tables) -> Vec<Setting> {
    let mut settings: Vec<_> =
        desired.settings.iter().map(|(setting, _)| setting.clone()).collect();
    let forwarding = desired.forwarding.clone().unwrap_or(Forwarding6::PerDevice);
    let known = found.veths.iter().filter(|(name, veth)| is_known(desired, name, veth));
    for (name, _) in known {
        let of_it = device_settings(name, &forwarding);
        settings.extend(of_it.into_iter().map(|(setting, _)| setting));
    }
    settings
}

/// Reads what `desired` needs to be known of settings: those that never were read, and those that may have changed.
/// Returns whether any was another than the mirror says.
pub(crate) async fn complete(mirror: &mut Mirror, desired: &Desired) -> Result<bool, KernelError> {
    let known: BTreeSet<&Setting> =
        mirror.tables.settings.iter().map(|(setting, _)| setting).collect();
    let mut settings = settings_of(desired, &mirror.tables);
    settings.retain(|setting| !known.contains(setting) || mirror.stale.contains(&setting.device));
    if settings.is_empty() {
        mirror.stale.clear();
        return Ok(false);
    }
    let read = read_settings(settings).await?;
    mirror.stale.clear();
    Ok(mirror.read(read))
}

/// Reads again those of the settings whose changes nothing tells of. Returns whether any was another than the mirror
/// says.
pub(crate) async fn glance(mirror: &mut Mirror) -> Result<bool, KernelError> {
    let silent = mirror.tables.settings.iter().map(|(setting, _)| setting);
    let silent: Vec<Setting> = silent.filter(|setting| !is_told(setting)).cloned().collect();
    if silent.is_empty() {
        return Ok(false);
    }
    let read = read_settings(silent).await?;
    Ok(mirror.read(read))
}

/// The values of the settings that exist.
async fn read_settings(settings: Vec<Setting>) -> Result<Vec<(Setting, String)>, KernelError> {
    let read = move || {
        let mut found = Vec::with_capacity(settings.len());
        for setting in settings {
            match sysctl::read(&setting.path()) {
                Ok(value) => found.push((setting, value)),
                // The device has gone meanwhile, or is still to be made.
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    };
    tokio::task::spawn_blocking(read).await?
}
