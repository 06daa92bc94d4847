//! Pure: the machine itself: its kernel, settings, tables, clock, routes, and who fights over what.

use std::time::Duration;

use limpet_api::condition::{Condition, ConditionCode, Mending, Severity};
use limpet_net_types::{Family, vxlan_overhead};

use super::surroundings::{DefaultRoute, PutBack, Surroundings};

/// The smallest MTU of an overlay: IPv6 needs it.
const SMALLEST: u32 = 1280;

/// The oldest kernel that has all that limpet cannot do without: resilient nexthop groups.
const OLDEST: (u32, u32) = (5, 15);

/// The first kernel that forwards IPv6 for single devices.
const PER_DEVICE: (u32, u32) = (6, 17);

/// What is put back so often, so close together and so lately, somebody takes away on purpose.
const CONTESTED: (u64, Duration, Duration) =
    (3, Duration::from_secs(120), Duration::from_secs(600));

/// How full the table of connections may be, in percent.
const NEARLY_FULL: u64 = 90;

/// The conditions of the machine.
pub(crate) fn judge(around: &Surroundings) -> Vec<Condition> {
    let mut found = Vec::new();
    found.extend(kernel(&around.kernel));
    found.extend(ipv6(around));
    found.extend(mtu(around));
    found.extend(connections(around));
    found.extend(neighbours(around));
    found.extend(clock(around));
    found.extend(notifications(around));
    found.extend(ambiguous(around));
    found.extend(around.defaults.iter().filter_map(|route| advertised(around, route)));
    found.extend(around.drifts.iter().filter(|drift| is_contested(drift)).map(contested));
    found
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(release: &str) -> Option<Condition> {
    let version = version(release)?;
    let old = |severity, breaks: &str, remedy: &str| Condition {
        code: ConditionCode::KernelOld,
        severity,
        about: None,
        what: format!("the kernel is {release}"),
        breaks: breaks.to_owned(),
        remedy: remedy.to_owned(),
        mending: Mending::ByHand,
    };
    if version < OLDEST {
        let breaks =
            "prefixes behind gateways cannot be laid out: there are no resilient nexthop groups";
        return Some(old(Severity::Broken, breaks, "boot 5.15 or newer"));
    }
    let breaks = "IPv6 is forwarded for all devices of the host or for none, so that limpet's nftables table \
                  alone keeps others from using this host as a router";
    (version < PER_DEVICE).then(|| {
        old(Severity::Note, breaks, "nothing to do; from 6.17 on limpet's devices alone forward")
    })
}

fn ipv6(around: &Surroundings) -> Option<Condition> {
    let off = |severity, what: &str, breaks: &str, remedy: &str, mending| Condition {
        code: ConditionCode::Ipv6Disabled,
        severity,
        about: None,
        what: what.to_owned(),
        breaks: breaks.to_owned(),
        remedy: remedy.to_owned(),
        mending,
    };
    if !around.has_ipv6 {
        return Some(off(
            Severity::Broken,
            "the kernel has no IPv6: it is built without, or booted with ipv6.disable=1",
            "routes of both families lead over link-local IPv6 nexthops: this host reaches no other one",
            "boot without ipv6.disable=1; net.ipv6.conf.all.disable_ipv6=1 keeps IPv6 off other devices",
            Mending::ByHand,
        ));
    }
    (around.settings.get("ipv6/conf/all/disable_ipv6").map(String::as_str) == Some("1")).then(|| {
        off(
            Severity::Note,
            "net.ipv6.conf.all.disable_ipv6 is 1",
            "nothing: limpet's own devices and containers have IPv6 all the same, since routes of both \
             families lead over link-local IPv6 nexthops",
            "nothing to do",
            Mending::ByLimpet,
        )
    })
}

fn mtu(around: &Surroundings) -> Option<Condition> {
    let underlay = around.underlay.as_ref()?;
    let most = underlay.mtu.saturating_sub(vxlan_overhead(underlay.address));
    let needs =
        |overlay: &super::surroundings::Overlay| overlay.mtu.unwrap_or(SMALLEST).max(SMALLEST);
    let network =
        around.networks.iter().filter(|overlay| needs(overlay) > most).max_by_key(|o| needs(o))?;
    let (needed, device) = (needs(network), &underlay.device);
    Some(Condition {
        code: ConditionCode::UnderlayMtu,
        severity: Severity::Broken,
        about: Some(device.clone()),
        what: format!(
            "the underlay device {device} has an MTU of {}, which leaves {most} bytes; network {} needs {needed}",
            underlay.mtu, network.name
        ),
        breaks: "large packets are lost, while small ones pass: connections hang when data flows"
            .to_owned(),
        remedy: format!(
            "raise the MTU of {device} to {} (and of what is between the hosts), or lower the network's",
            needed + vxlan_overhead(underlay.address)
        ),
        mending: Mending::ByHand,
    })
}

fn connections(around: &Surroundings) -> Option<Condition> {
    let number = |name: &str| around.settings.get(name)?.parse::<u64>().ok();
    let count = number("netfilter/nf_conntrack_count")?;
    let most = number("netfilter/nf_conntrack_max").filter(|most| *most > 0)?;
    let percent = count.saturating_mul(100) / most;
    (percent >= NEARLY_FULL).then(|| Condition {
        code: ConditionCode::ConnectionTableFull,
        severity: if count >= most { Severity::Broken } else { Severity::Risk },
        about: None,
        what: format!("the kernel tracks {count} of at most {most} connections"),
        breaks: "when it is full, packets of new connections are dropped wherever connections are tracked".to_owned(),
        remedy: "raise net.netfilter.nf_conntrack_max, or find who opens so many".to_owned(),
        mending: Mending::ByHand,
    })
}

fn neighbours(around: &Surroundings) -> Option<Condition> {
    let most = |family: &str| {
        let most = around.settings.get(&format!("{family}/neigh/default/gc_thresh3"));
        most.map_or("unknown", String::as_str).to_owned()
    };
    (around.neighbours_refused > 0).then(|| Condition {
        code: ConditionCode::NeighbourTableFull,
        severity: Severity::Broken,
        about: None,
        what: format!(
            "{} neighbour entries did not fit lately; gc_thresh3 is {} (IPv4) and {} (IPv6)",
            around.neighbours_refused,
            most("ipv4"),
            most("ipv6")
        ),
        breaks: "packets to neighbours that have no entry are dropped, the underlay's among them; limpet's own \
                 entries are permanent and do not count"
            .to_owned(),
        remedy: "raise net.ipv4.neigh.default.gc_thresh1 to 3, and those of IPv6".to_owned(),
        mending: Mending::ByHand,
    })
}

fn clock(around: &Surroundings) -> Option<Condition> {
    let jump = around.jumped?;
    let (seconds, way) = (jump.unsigned_abs(), if jump < 0 { "back" } else { "ahead" });
    Some(Condition {
        code: ConditionCode::ClockJumped,
        severity: Severity::Note,
        about: None,
        what: format!("the wall clock jumped {seconds} s {way}, or the machine slept"),
        breaks: "nothing of limpet's goes by the wall clock; certificates of other programs do, and times in logs"
            .to_owned(),
        remedy: "see that chrony, ntpd or systemd-timesyncd keeps the clock".to_owned(),
        mending: Mending::ByHand,
    })
}

fn notifications(around: &Surroundings) -> Option<Condition> {
    (around.overruns > 0).then(|| Condition {
        code: ConditionCode::NotificationsLost,
        severity: Severity::Note,
        about: None,
        what: format!("the kernel's notifications overran {} times lately", around.overruns),
        breaks: "nothing: the agent compares everything after each".to_owned(),
        remedy: "if it goes on, find who changes so much".to_owned(),
        mending: Mending::ByLimpet,
    })
}

fn ambiguous(around: &Surroundings) -> Option<Condition> {
    if around.underlay_chosen {
        return None;
    }
    let of = |family| {
        let routes = around.defaults.iter().filter(move |route| route.family == family);
        let best = routes.clone().map(|route| route.metric).min()?;
        let mut devices: Vec<&str> = routes
            .filter(|route| route.metric == best)
            .map(|route| route.device.as_str())
            .collect();
        devices.sort_unstable();
        devices.dedup();
        (devices.len() > 1).then(|| devices.join(" and "))
    };
    let devices = of(Family::V4).or_else(|| of(Family::V6))?;
    let underlay = around.underlay.as_ref().map_or("not known".to_owned(), |underlay| {
        format!("{} on {}", underlay.address, underlay.device)
    });
    Some(Condition {
        code: ConditionCode::UnderlayAmbiguous,
        severity: Severity::Risk,
        about: None,
        what: format!(
            "default routes of one metric lead out by {devices}; the underlay is {underlay}"
        ),
        breaks: "which of them is the underlay may be another one after a restart of the network"
            .to_owned(),
        remedy: "name the underlay address with --underlay, or give the routes different metrics"
            .to_owned(),
        mending: Mending::ByHand,
    })
}

fn advertised(around: &Surroundings, route: &DefaultRoute) -> Option<Condition> {
    if !route.advertised {
        return None;
    }
    let device = &route.device;
    let setting = |name: &str| around.settings.get(name).map(String::as_str);
    let accepts = setting(&format!("ipv6/conf/{device}/accept_ra"))?;
    let forwards = setting(&format!("ipv6/conf/{device}/forwarding"))? != "0";
    (forwards && accepts != "2").then(|| Condition {
        code: ConditionCode::RouterAdvertisementsIgnored,
        severity: Severity::Risk,
        about: Some(device.clone()),
        what: format!(
            "the IPv6 default route by {device} is of a router's advertisement, {device} forwards, and its \
             accept_ra is {accepts}"
        ),
        breaks: "the kernel ignores further advertisements: the route ends when it expires".to_owned(),
        remedy: format!("`sysctl -w net.ipv6.conf.{}.accept_ra=2`", device.replace('.', "/")),
        mending: Mending::ByHand,
    })
}

fn is_contested(drift: &PutBack) -> bool {
    let (times, apart, lately) = CONTESTED;
    let between = u32::try_from(drift.times.saturating_sub(1)).unwrap_or(u32::MAX).max(1);
    drift.times >= times && drift.ago < lately && drift.over / between <= apart
}

fn contested(drift: &PutBack) -> Condition {
    Condition {
        code: ConditionCode::Contested,
        severity: Severity::Risk,
        about: Some(drift.what.clone()),
        what: format!(
            "somebody undoes it again and again: `{}` was needed {} times",
            drift.what, drift.times
        ),
        breaks: "packets are lost each time until the agent has put it back".to_owned(),
        remedy: format!(
            "find who changes this {} (another network manager, a cron job) and stop it",
            drift.kind
        ),
        mending: Mending::ByLimpet,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::around;
    use super::*;
    use crate::conditions::surroundings::Underlay;

    fn found(around: &Surroundings) -> Vec<(ConditionCode, Severity)> {
        judge(around).iter().map(|found| (found.code, found.severity)).collect()
    }

    fn set(around: &mut Surroundings, settings: &[(&str, &str)]) {
        for (name, value) in settings {
            around.settings.insert((*name).to_owned(), (*value).to_owned());
        }
    }

    #[test]
    fn a_good_machine_has_no_condition() {
        assert_eq!(judge(&around()), []);
        assert_eq!(judge(&Surroundings { kernel: "?".to_owned(), ..around() }), []);
    }

    #[test]
    fn an_old_kernel_is_named_by_what_it_lacks() {
        let with = |kernel: &str| found(&Surroundings { kernel: kernel.to_owned(), ..around() });
        assert_eq!(with("5.10.0-28-amd64"), [(ConditionCode::KernelOld, Severity::Broken)]);
        assert_eq!(with("6.1.0-18-amd64"), [(ConditionCode::KernelOld, Severity::Note)]);
        assert_eq!(with("6.18.4"), []);
        assert_eq!(with("7.0"), []);
    }

    #[test]
    fn without_ipv6_there_is_no_overlay_and_with_it_switched_off_there_is() {
        let mut around = around();
        set(&mut around, &[("ipv6/conf/all/disable_ipv6", "1")]);
        assert_eq!(found(&around), [(ConditionCode::Ipv6Disabled, Severity::Note)]);
        around.has_ipv6 = false;
        assert_eq!(found(&around), [(ConditionCode::Ipv6Disabled, Severity::Broken)]);
    }

    #[test]
    fn an_underlay_that_is_too_small_names_both_mtus() {
        let mut around = around();
        let address = "192.0.2.1".parse().unwrap();
        around.underlay = Some(Underlay { address, device: "eth0".to_owned(), mtu: 1500 });
        around.networks[0].mtu = Some(1450);
        assert_eq!(found(&around), []);
        around.networks[0].mtu = Some(1451);
        let conditions = judge(&around);
        assert_eq!(conditions[0].code, ConditionCode::UnderlayMtu);
        assert!(conditions[0].remedy.contains("to 1501"), "{}", conditions[0].remedy);
        around.networks[0].mtu = None;
        around.underlay.as_mut().unwrap().mtu = 1329;
        assert_eq!(found(&around), [(ConditionCode::UnderlayMtu, Severity::Broken)]);
    }

    #[test]
    fn full_tables_are_told_before_and_after_they_are_full() {
        let mut around = around();
        let tracked = |count| {
            [("netfilter/nf_conntrack_count", count), ("netfilter/nf_conntrack_max", "1000")]
        };
        set(&mut around, &tracked("899"));
        assert_eq!(found(&around), []);
        set(&mut around, &tracked("900"));
        assert_eq!(found(&around), [(ConditionCode::ConnectionTableFull, Severity::Risk)]);
        set(&mut around, &tracked("1000"));
        assert_eq!(found(&around), [(ConditionCode::ConnectionTableFull, Severity::Broken)]);
        around.settings.clear();
        around.neighbours_refused = 3;
        assert_eq!(found(&around), [(ConditionCode::NeighbourTableFull, Severity::Broken)]);
    }

    #[test]
    fn a_clock_that_jumped_and_notifications_that_were_lost_are_notes() {
        let around = Surroundings { jumped: Some(-3600), overruns: 2, ..around() };
        let (clock, lost) = (ConditionCode::ClockJumped, ConditionCode::NotificationsLost);
        assert_eq!(found(&around), [(clock, Severity::Note), (lost, Severity::Note)]);
        assert!(judge(&around)[0].what.contains("3600 s back"));
    }

    #[test]
    fn default_routes_are_ambiguous_only_where_the_kernel_finds_them_equal() {
        let route = |device: &str, metric| DefaultRoute {
            family: Family::V4,
            device: device.to_owned(),
            metric,
            advertised: false,
        };
        let with = |defaults| Surroundings { defaults, ..around() };
        assert_eq!(found(&with(vec![route("eth0", 100), route("eth1", 200)])), []);
        assert_eq!(found(&with(vec![route("eth0", 100), route("eth0", 100)])), []);
        let mut equal = with(vec![route("eth0", 100), route("eth1", 100), route("eth2", 200)]);
        assert_eq!(found(&equal), [(ConditionCode::UnderlayAmbiguous, Severity::Risk)]);
        equal.underlay_chosen = true;
        assert_eq!(found(&equal), []);
    }

    #[test]
    fn an_advertised_route_is_lost_where_its_device_forwards_and_does_not_accept() {
        let route = DefaultRoute {
            family: Family::V6,
            device: "eth0".to_owned(),
            metric: 1024,
            advertised: true,
        };
        let mut around = Surroundings { defaults: vec![route], ..around() };
        let told =
            |accept| [("ipv6/conf/eth0/accept_ra", accept), ("ipv6/conf/eth0/forwarding", "1")];
        set(&mut around, &told("1"));
        let lost = ConditionCode::RouterAdvertisementsIgnored;
        assert_eq!(found(&around), [(lost, Severity::Risk)]);
        set(&mut around, &told("2"));
        assert_eq!(found(&around), []);
    }

    #[test]
    fn what_is_undone_again_and_again_is_contested() {
        let drift = |times, over, ago| PutBack {
            kind: "setting",
            what: "sysctl -w net.ipv4.conf.limpet1.forwarding=1".to_owned(),
            times,
            over: Duration::from_secs(over),
            ago: Duration::from_secs(ago),
        };
        let with = |drift| found(&Surroundings { drifts: vec![drift], ..around() });
        assert_eq!(with(drift(3, 60, 10)), [(ConditionCode::Contested, Severity::Risk)]);
        assert_eq!(with(drift(2, 30, 10)), [], "twice");
        assert_eq!(with(drift(3, 60, 700)), [], "long ago");
        assert_eq!(with(drift(3, 7200, 10)), [], "far apart");
    }
}
