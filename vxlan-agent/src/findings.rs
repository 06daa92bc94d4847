//! Pure: where the store and this host's kernel differ, and what would repair it.

use std::collections::BTreeMap;

use limpet_api::book::{Attachment, AttachmentKey};
use limpet_api::host::{Finding, FindingKind};
use limpet_net_types::{Token, Uid, host_ifname};

use crate::desired::Desired;
use crate::evidence::Sight;
use crate::layout::{Route, Target, is_veth_name};
use crate::orphans::Orphans;
use crate::records::Record;
use crate::step::Step;
use crate::veths::Interfaces;
use crate::view::View;

/// What was seen, after what is held against it was taken down.
pub(crate) struct Seen<'a> {
    pub(crate) boot: Token,
    pub(crate) view: &'a View,
    pub(crate) records: &'a BTreeMap<Uid, Record>,
    /// Why containers are off the network.
    pub(crate) severed: &'a BTreeMap<Uid, String>,
    pub(crate) interfaces: &'a Interfaces,
    /// Whether there is an interface, or one in the making, for what was known before the look.
    pub(crate) sight: &'a Sight,
    /// The interfaces without an attachment.
    pub(crate) orphans: &'a Orphans,
    /// Whether a namespace is mounted at the path.
    pub(crate) netns_exists: &'a dyn Fn(&str) -> bool,
    pub(crate) desired: &'a Desired,
    /// What is to be done to the kernel.
    pub(crate) steps: &'a [Step],
}

/// Returns the differences: attachments first, then interfaces, then the rest of the kernel.
pub(crate) fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    attachments(seen, &mut findings);
    interfaces(seen, &mut findings);
    kernel(seen, &mut findings);
    findings
}

fn finding(kind: FindingKind, what: String, repair: &str) -> Finding {
    Finding { kind, attachment: None, uid: None, ifname: None, what, repair: repair.to_owned() }
}

fn ifname_of(AttachmentKey { network, container, ifname, .. }: &AttachmentKey) -> String {
    host_ifname(network, container, ifname)
}

fn about(attachment: &Attachment, finding: Finding) -> Finding {
    let ifname = Some(ifname_of(&attachment.key));
    let key = Some(attachment.key.clone());
    Finding { attachment: key, uid: Some(attachment.uid), ifname, ..finding }
}

fn attachments(seen: &Seen<'_>, findings: &mut Vec<Finding>) {
    for (_, attachment) in seen.view.attachments() {
        let container = &attachment.key.container;
        if !seen.sight.is_there(attachment.uid) {
            let (state, repair) = if attachment.boot != seen.boot {
                ("was made in an earlier boot", "the agent ends the attachment at its next look")
            } else if (seen.netns_exists)(&attachment.netns) {
                ("has its namespace still", "a DEL or GC of its runtime, or deleting the namespace")
            } else {
                ("has no namespace", "the agent ends the attachment, at most half of all at a time")
            };
            let what = format!("container {container} has no interface and {state}");
            let kind = FindingKind::AttachmentWithoutInterface;
            findings.push(about(attachment, finding(kind, what, repair)));
        } else if let Some(interface) = seen.interfaces.get(&attachment.uid).filter(|it| !it.up) {
            let what = format!("interface {} of container {container} is down", interface.name);
            let repair = "set it up, or start the container anew";
            findings.push(about(attachment, finding(FindingKind::KernelDiffers, what, repair)));
        }
    }
}

fn interfaces(seen: &Seen<'_>, findings: &mut Vec<Finding>) {
    let asserted = seen.orphans.assert.iter().map(|attachment| attachment.uid);
    let unknown = seen.orphans.sever.iter().copied();
    for uid in asserted.chain(unknown) {
        let repair = if seen.orphans.sever.contains(&uid) {
            "the agent takes it off the network"
        } else {
            "the agent re-asserts it"
        };
        findings.extend(interface(seen, uid, "has no attachment in the store", repair));
    }
    let severed = seen.interfaces.iter().filter(|(uid, it)| it.severed && !seen.view.has(**uid));
    for (uid, _) in severed {
        let why = seen.severed.get(uid).map_or("by an earlier agent", String::as_str);
        let what = format!("is severed: {why}");
        findings.extend(interface(seen, *uid, &what, "start the container anew"));
        if let Some(last) = findings.last_mut() {
            last.kind = FindingKind::InterfaceSevered;
        }
    }
}

fn interface(seen: &Seen<'_>, uid: Uid, what: &str, repair: &str) -> Option<Finding> {
    let name = &seen.interfaces.get(&uid)?.name;
    let of = seen.records.get(&uid).map(|record| record.attachment.key.clone());
    let container =
        of.as_ref().map_or_else(String::new, |key| format!(" of container {}", key.container));
    let what = format!("interface {name}{container} {what}");
    let finding = finding(FindingKind::InterfaceWithoutAttachment, what, repair);
    Some(Finding { attachment: of, uid: Some(uid), ifname: Some(name.clone()), ..finding })
}

fn kernel(seen: &Seen<'_>, findings: &mut Vec<Finding>) {
    let pass = "the agent's next pass sets it";
    let by_name: BTreeMap<String, &Attachment> =
        seen.view.attachments().map(|(_, of)| (ifname_of(&of.key), of)).collect();
    let mut rest = Vec::new();
    for step in seen.steps {
        let (kind, device, what) = match step {
            Step::SetRoute(Route { key, target: Target::Link(device), .. }) => {
                let what = format!("{} has no route or a wrong one by it", key.destination);
                (FindingKind::RouteMissing, device, what)
            }
            Step::DelRoute(Route { key, target: Target::Link(device), .. }) => {
                let what = format!("a route leads to {} by it that should not", key.destination);
                (FindingKind::RouteExtra, device, what)
            }
            Step::NewDevice { name, .. } => {
                let what = "the network's device is missing, or another one".to_owned();
                (FindingKind::DeviceMissing, name, what)
            }
            other => {
                rest.push(other);
                continue;
            }
        };
        let repair =
            if kind == FindingKind::RouteExtra { "the agent's next pass takes it" } else { pass };
        let found = finding(kind, format!("{device}: {what}"), repair);
        findings.push(match by_name.get(device).filter(|_| is_veth_name(device)) {
            Some(attachment) => about(attachment, found),
            None => Finding { ifname: Some(device.clone()), ..found },
        });
    }
    if let Some(first) = rest.first() {
        let what =
            format!("{} more steps would make the kernel right, first `{first}`", rest.len());
        let repair = "the agent's next pass does them; `limpet-agent plan` shows all";
        findings.push(finding(FindingKind::KernelDiffers, what, repair));
    }
    let problems = seen.desired.problems.iter();
    findings.extend(problems.map(|problem| {
        finding(FindingKind::NotLaidOut, problem.to_string(), "see the agent's log on the host")
    }));
}

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
