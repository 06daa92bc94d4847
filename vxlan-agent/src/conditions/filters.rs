//! Pure: what other programs' packet filters do to limpet's packets.

use std::collections::BTreeSet;

use limpet_api::condition::{Condition, ConditionCode, Mending, Severity};
use limpet_net_types::Family;

use super::packet::{Device, Fate, Packet, fate};
use super::surroundings::{Filters, Iptables, Overlay, Surroundings};
use super::{iptables, nftables};
use crate::layout::VETH_PREFIX;

/// How many networks' packets are tried: rules that tell them apart are rare.
const TRIED: usize = 4;

/// The bit that the interface groups of all limpet's devices have, and no others.
pub(crate) const GROUPS: &str = "0x1000/0x1000";

/// Which of the kernel's two places a packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Forward,
    Input,
}

impl Hook {
    fn of_nftables(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Input => "input",
        }
    }

    fn of_iptables(self) -> &'static str {
        match self {
            Self::Forward => "FORWARD",
            Self::Input => "INPUT",
        }
    }
}

/// The conditions of the host's packet filters.
pub(crate) fn judge(around: &Surroundings) -> Vec<Condition> {
    let mut found = Vec::new();
    let mut told = BTreeSet::new();
    let mut tell = |condition: Condition| {
        if told.insert((condition.code, condition.about.clone())) {
            found.push(condition);
        }
    };
    for (hook, packet) in packets(around) {
        let filters = &around.filters;
        let port = packet.port.unwrap_or_default();
        for listed in filters.iptables.iter().filter(|listed| listed.family == packet.family) {
            let chain = hook.of_iptables();
            for (table, chains) in iptables::tables(&listed.listing, chain, &packet) {
                if let Fate::Dropped { by, certain } = fate(&chains, chain) {
                    tell(of_iptables((hook, filters, port), (listed, &table), &by, certain));
                }
            }
        }
        for (base, listing) in &filters.nftables {
            let of_it = base.hook == hook.of_nftables() && base.is_for(packet.family);
            let read = base.is_of_iptables()
                && filters.iptables.iter().any(|listed| listed.family == packet.family);
            if !of_it || read {
                continue;
            }
            let about = format!("{} {} {}", base.family, base.table, base.name);
            match nftables::chains(listing, &packet).map(|chains| fate(&chains, &base.name)) {
                None => tell(unread(format!("the chain {about} is listed in a form that is new"))),
                Some(Fate::Dropped { by, certain }) => {
                    tell(of_nftables(around, (hook, port), &about, (&by, certain)));
                }
                Some(Fate::Passes) => {}
            }
        }
    }
    for what in &around.filters.unread {
        tell(unread(what.clone()));
    }
    found
}

/// The packets that must pass: from the tunnel to containers and back, and the tunnel's own.
fn packets(around: &Surroundings) -> Vec<(Hook, Packet)> {
    let mut packets = Vec::new();
    for overlay in around.networks.iter().take(TRIED) {
        for family in [Family::V4, Family::V6] {
            let pools = around.pools.iter().copied().filter(|pool| pool.family() == family);
            let pools: Vec<_> = pools.collect();
            if pools.is_empty() {
                continue;
            }
            let device = |name: &str| Device { name: name.to_owned(), group: overlay.group };
            let tunnel = device(&overlay.device);
            // Any container's: rules for one of them by its name are nobody's.
            let container = device(&format!("{VETH_PREFIX}00000000000"));
            for (from, to) in [(&tunnel, &container), (&container, &tunnel)] {
                packets.push((
                    Hook::Forward,
                    Packet {
                        family,
                        from: from.clone(),
                        to: Some(to.clone()),
                        sources: pools.clone(),
                        destinations: pools.clone(),
                        port: None,
                    },
                ));
            }
        }
        packets.extend(own(around, overlay).map(|packet| (Hook::Input, packet)));
    }
    packets
}

/// The VXLAN packets of other hosts; none while there are none.
fn own(around: &Surroundings, overlay: &Overlay) -> Option<Packet> {
    let underlay = around.underlay.as_ref()?;
    let family = Family::of(underlay.address);
    let peers = around.peers.iter().filter(|peer| Family::of(**peer) == family);
    let sources: Vec<_> =
        peers.filter_map(|peer| limpet_net_types::Range::between(*peer, *peer)).collect();
    (!sources.is_empty()).then(|| Packet {
        family,
        from: Device { name: underlay.device.clone(), group: 0 },
        to: None,
        sources,
        destinations: Vec::new(),
        port: Some(overlay.port),
    })
}

/// Whether the chain FORWARD of an iptables drops what is to be forwarded for limpet.
pub(crate) fn drops_forward(around: &Surroundings, listed: &Iptables) -> bool {
    let forwarded = packets(around).into_iter().filter(|(hook, _)| *hook == Hook::Forward);
    let chain = Hook::Forward.of_iptables();
    forwarded.filter(|(_, packet)| packet.family == listed.family).any(|(_, packet)| {
        let tables = iptables::tables(&listed.listing, chain, &packet);
        let filter = tables.iter().filter(|(table, _)| table == "filter");
        filter.into_iter().any(|(_, chains)| fate(chains, chain) != Fate::Passes)
    })
}

/// The chain where rules of limpet's stand best: the one that Docker leaves to operators, where packets come by it.
pub(crate) fn chain_for_rules(listing: &str) -> &'static str {
    let leads_there =
        |line: &str| line.starts_with("-A FORWARD ") && line.contains("-j DOCKER-USER");
    if listing.lines().any(leads_there) { "DOCKER-USER" } else { "FORWARD" }
}

/// The rules that let the overlay pass, as a shell takes them.
fn mending_rules(listed: &Iptables) -> String {
    let chain = chain_for_rules(&listed.listing);
    let rule =
        |end| format!("{} -I {chain} -m devgroup --{end}-group {GROUPS} -j ACCEPT", listed.tool);
    format!("`{}` and `{}`", rule("src"), rule("dst"))
}

fn of_iptables(
    (hook, filters, port): (Hook, &Filters, u16),
    (listed, table): (&Iptables, &str),
    by: &str,
    certain: bool,
) -> Condition {
    let chain = hook.of_iptables();
    let about = Some(format!("{} {table} {chain}", listed.tool));
    let what = format!("{by} of {} drops {}", listed.tool, subject(hook, certain));
    match hook {
        Hook::Input => Condition {
            about,
            remedy: format!(
                "let UDP of other hosts in: `{} -I INPUT -p udp --dport {port} -j ACCEPT`",
                listed.tool
            ),
            ..port_filtered(what, certain)
        },
        Hook::Forward => Condition {
            code: ConditionCode::ForwardPolicy,
            severity: severity(certain),
            about,
            what,
            breaks: "containers of this host reach nobody on other hosts, and nobody them"
                .to_owned(),
            remedy: format!(
                "start the agent with --mend forward-policy, or {}",
                mending_rules(listed)
            ),
            mending: if filters.mended && table == "filter" {
                Mending::ByLimpet
            } else {
                Mending::IfAsked
            },
        },
    }
}

fn of_nftables(
    around: &Surroundings,
    (hook, port): (Hook, u16),
    about: &str,
    (by, certain): (&str, bool),
) -> Condition {
    let what = format!("{by} ({about}) drops {}", subject(hook, certain));
    let about_it = Some(about.to_owned());
    let firewalld = around.managers.firewalld.is_some() && about.contains("firewalld");
    match hook {
        Hook::Input => Condition {
            about: about_it,
            remedy: if firewalld {
                format!("`firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload`")
            } else {
                format!("let UDP of other hosts in there: `udp dport {port} accept`")
            },
            ..port_filtered(what, certain)
        },
        Hook::Forward => Condition {
            code: ConditionCode::ForwardFilter,
            severity: severity(certain),
            about: about_it,
            what,
            breaks: "containers of this host reach nobody on other hosts, and nobody them"
                .to_owned(),
            remedy: if firewalld {
                let zone = "firewall-cmd --permanent --zone=trusted --add-source=";
                let pools = around.pools.iter().map(|pool| format!("`{zone}{pool}`"));
                let pools: Vec<_> = pools.collect();
                format!("{}, then `firewall-cmd --reload`", pools.join(", "))
            } else {
                "accept there what comes from and goes to limpet's devices: \
                 `iifgroup & 0x1000 == 0x1000 accept` and `oifgroup & 0x1000 == 0x1000 accept`"
                    .to_owned()
            },
            mending: Mending::ByHand,
        },
    }
}

fn port_filtered(what: String, certain: bool) -> Condition {
    Condition {
        code: ConditionCode::VxlanPortFiltered,
        severity: severity(certain),
        about: None,
        what,
        breaks: "nothing from other hosts arrives in the overlay".to_owned(),
        remedy: String::new(),
        mending: Mending::ByHand,
    }
}

fn unread(what: String) -> Condition {
    Condition {
        code: ConditionCode::FiltersUnread,
        severity: Severity::Note,
        about: None,
        what,
        breaks: "whether other programs drop the overlay's packets is not known".to_owned(),
        remedy: "install the program that is missing, or look yourself".to_owned(),
        mending: Mending::ByHand,
    }
}

fn severity(certain: bool) -> Severity {
    if certain { Severity::Broken } else { Severity::Risk }
}

fn subject(hook: Hook, certain: bool) -> &'static str {
    match (hook, certain) {
        (Hook::Forward, true) => "packets between containers and the overlay",
        (Hook::Forward, false) => "what may be packets between containers and the overlay",
        (Hook::Input, true) => "other hosts' VXLAN packets",
        (Hook::Input, false) => "what may be other hosts' VXLAN packets",
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::around;
    use super::super::nftables::base_chains;
    use super::*;

    fn codes(around: &Surroundings) -> Vec<(ConditionCode, Severity, String)> {
        let about = |found: &Condition| found.about.clone().unwrap_or_default();
        judge(around).iter().map(|found| (found.code, found.severity, about(found))).collect()
    }

    fn listed(tool: &'static str, listing: &str) -> Iptables {
        let family = if tool.starts_with("ip6") { Family::V6 } else { Family::V4 };
        Iptables { tool, family, listing: listing.to_owned() }
    }

    #[test]
    fn a_host_without_filters_has_no_condition() {
        assert_eq!(judge(&around()), []);
    }

    #[test]
    fn a_policy_of_drop_is_told_once_with_the_rules_that_mend_it() {
        let mut around = around();
        let docker = "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n";
        around.filters.iptables.push(listed("iptables", docker));
        around.filters.iptables.push(listed("ip6tables-legacy", "*filter\n:FORWARD DROP [0:0]\n"));
        let of = |about: &str| (ConditionCode::ForwardPolicy, Severity::Broken, about.to_owned());
        let wanted = [of("iptables filter FORWARD"), of("ip6tables-legacy filter FORWARD")];
        assert_eq!(codes(&around), wanted);
        let found = &judge(&around)[0];
        assert_eq!(found.mending, Mending::IfAsked);
        let rule = "iptables -I DOCKER-USER -m devgroup --src-group 0x1000/0x1000 -j ACCEPT";
        assert!(found.remedy.contains(rule), "{}", found.remedy);
        around.filters.mended = true;
        assert_eq!(judge(&around)[1].mending, Mending::ByLimpet);
        assert!(judge(&around)[1].remedy.contains("ip6tables-legacy -I FORWARD"));
    }

    #[test]
    fn chains_of_nftables_are_told_apart_from_those_of_iptables() {
        let mut around = around();
        let chains = base_chains(include_str!("recorded/nft-chains.json")).unwrap();
        let filter = include_str!("recorded/nft-filter.json");
        let of_iptables = include_str!("recorded/nft-iptables.json");
        for base in chains {
            let listing = match base.table.as_str() {
                "filter" if base.family == "ip" => of_iptables,
                "filter" => filter,
                _ => continue,
            };
            around.filters.nftables.push((base, listing.to_owned()));
        }
        let broken =
            |about: &str| (ConditionCode::ForwardFilter, Severity::Broken, about.to_owned());
        assert_eq!(codes(&around), [broken("inet filter forward"), broken("ip filter FORWARD")]);
        // Where the program can be asked, its own words count.
        let accepts = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i limpet+ -j ACCEPT\n-A FORWARD -o limpet+ -j ACCEPT\n";
        around.filters.iptables.push(listed("iptables", accepts));
        assert_eq!(codes(&around), [broken("inet filter forward")]);
        around.peers = vec!["198.51.100.7".parse().unwrap()];
        let closed = ConditionCode::VxlanPortFiltered;
        assert!(codes(&around).contains(&(
            closed,
            Severity::Broken,
            "inet filter input".to_owned()
        )));
    }

    #[test]
    fn what_could_not_be_read_is_said() {
        let mut around = around();
        around.filters.unread.push("iptables-legacy-save is not installed".to_owned());
        assert_eq!(codes(&around), [(ConditionCode::FiltersUnread, Severity::Note, String::new())]);
    }
}
