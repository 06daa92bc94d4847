//! Pure: the plan on a model kernel: it converges, repeats nothing, and never takes a working path away first.

use std::collections::BTreeSet;

use limpet_api::config::{Host, Pool, PoolState, Role, Select, Sticky};
use limpet_api::host::{Block, Claimed, Snapshot, Stray, WatchEvent, WatchLine};
use limpet_net_types::{Mac, Token, host_ifname};
use proptest::prelude::*;

use super::worlds::{cluster, do_harm, harm};
use super::*;
use crate::desired::{Forwarding6, HostFacts, Others, Way, desired};
use crate::fixture;
use crate::layout::{FoundNexthop, GROUP_OF_THE_DEAD, Hop, Veth};
use crate::model::{add_settings, carry_out};
use crate::view::View;

pub(super) fn host(name: &str, n: u8, roles: &[Role]) -> Host {
    let external = if roles.contains(&Role::Gateway) {
        ["198.51.100.0/24", "2001:db8:e::/64"].map(|prefix| prefix.parse().unwrap()).into()
    } else {
        BTreeSet::new()
    };
    Host {
        name: name.parse().unwrap(),
        roles: roles.iter().copied().collect(),
        labels: BTreeMap::default(),
        external,
        networks: None,
        vtep_mac: Mac::new([2, 0x4c, 0, 0, 0, n]).unwrap(),
        underlay: Some(format!("192.0.2.{n}").parse().unwrap()),
        addresses: vec![
            format!("192.0.2.{n}").parse().unwrap(),
            format!("2001:db8::{n:x}").parse().unwrap(),
        ],
    }
}

pub(super) fn pool(name: &str, network: u16, range: &str) -> Pool {
    Pool {
        name: name.parse().unwrap(),
        network: fixture::network(network).name,
        range: range.parse().unwrap(),
        exclude: vec![],
        block_size: 4,
        sticky: Sticky::Auto,
        retention: limpet_api::config::DEFAULT_RETENTION,
        cooldown: limpet_api::config::DEFAULT_COOLDOWN,
        takeover_after: limpet_api::config::DEFAULT_TAKEOVER_AFTER,
        select: Select::default(),
        priority: 0,
        state: PoolState::Active,
    }
}

pub(crate) fn view(snapshot: Snapshot) -> View {
    let mut view = View::default();
    let event = WatchEvent::Snapshot(Box::new(snapshot));
    view.apply(WatchLine { store: Token::from_bits(1), revision: 1, event }).unwrap();
    view
}

pub(crate) fn facts() -> HostFacts {
    HostFacts {
        name: "node-a".parse().unwrap(),
        underlay_mtu: 1500,
        addresses: host("node-a", 1, &[]).addresses,
        led_to: vec![
            ("eth0".to_owned(), "192.0.2.0/24".parse().unwrap()),
            ("eth1".to_owned(), "198.51.100.0/24".parse().unwrap()),
            ("eth1".to_owned(), "2001:db8:e::/64".parse().unwrap()),
            ("eth0".to_owned(), "0.0.0.0/0".parse().unwrap()),
        ],
        forwarding: Forwarding6::PerDevice,
        others: Others::default(),
        mark_mask: crate::mark::DEFAULT_MASK.parse().unwrap(),
    }
}

pub(super) fn block(pool: &str, network: u16, prefix: &str, host: &str) -> Block {
    Block {
        pool: pool.parse().unwrap(),
        network: fixture::network(network).name,
        prefix: prefix.parse().unwrap(),
        host: host.parse().unwrap(),
    }
}

/// Two nodes and a gateway, one network, one container here.
pub(crate) fn small() -> Snapshot {
    Snapshot {
        networks: vec![fixture::network(1)],
        pools: vec![pool("p4", 1, "10.32.0.0/16"), pool("p6", 1, "fd32::/64")],
        hosts: vec![
            host("node-a", 1, &[Role::Node]),
            host("node-b", 2, &[Role::Node]),
            host("gw", 9, &[Role::Gateway]),
        ],
        blocks: vec![
            block("p4", 1, "10.32.0.0/26", "node-a"),
            block("p4", 1, "10.32.0.64/26", "node-b"),
        ],
        strays: vec![Stray {
            network: fixture::network(1).name,
            address: "fd32::7".parse().unwrap(),
            host: "node-b".parse().unwrap(),
        }],
        attachments: vec![fixture::attachment(1, 1)],
        ..Snapshot::default()
    }
}

pub(crate) fn ifname(n: u8) -> String {
    let key = fixture::attachment(n, 0).key;
    host_ifname(&key.network, &key.container, &key.ifname)
}

pub(super) fn with_veth(mut found: Tables, n: u8, uid: u128, group: u32) -> Tables {
    let veth = Veth { uid: Some(Token::from_bits(uid)), mtu: 1450, group, up: true };
    found.veths.insert(ifname(n), veth);
    add_settings(&mut found, &ifname(n));
    found
}

fn commands(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).filter(|line| !line.starts_with("sysctl")).collect()
}

pub(super) fn carried_out(desired: &Desired, found: &Tables) -> Tables {
    let mut kernel = found.clone();
    for step in plan(desired, found) {
        carry_out(&mut kernel, &step);
    }
    kernel
}

/// Compares with a file of commands; `UPDATE=1` writes it anew.
fn golden(name: &str, lines: &[String]) {
    let path = format!("{}/src/plan/{name}.golden", env!("CARGO_MANIFEST_DIR"));
    let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{path}: UPDATE=1 rewrites it");
}

#[test]
fn an_underlay_whose_mtu_is_too_small_takes_no_device_away() {
    let wide = desired(&view(small()), &facts()).unwrap();
    let kernel = carried_out(&wide, &with_veth(Tables::default(), 1, 1, 4097));
    let narrow = HostFacts { underlay_mtu: 1300, ..facts() };
    let wanted = desired(&view(small()), &narrow).unwrap();
    let told: Vec<String> = wanted.problems.iter().map(ToString::to_string).collect();
    assert!(
        told.iter().any(|problem| problem.contains("the underlay of this host leaves 1250")),
        "{told:?}"
    );
    let steps: Vec<String> = plan(&wanted, &kernel).iter().map(ToString::to_string).collect();
    assert!(!steps.is_empty() && steps.iter().all(|step| step.contains("mtu 1280")), "{steps:?}");
}

#[test]
fn an_empty_host_gets_everything_in_the_order_in_which_it_works() {
    let desired = desired(&view(small()), &facts()).unwrap();
    let found = with_veth(Tables::default(), 1, 1, 4097);
    let steps = plan(&desired, &found);
    golden("first", &steps.iter().map(ToString::to_string).collect::<Vec<_>>());
}

#[test]
fn a_host_that_leaves_loses_its_routes_before_its_nexthop_and_that_before_its_entries() {
    let first = desired(&view(small()), &facts()).unwrap();
    let kernel = carried_out(&first, &Tables::default());
    let mut left = small();
    left.hosts.retain(|host| host.name.as_str() != "node-b");
    left.blocks.clear();
    left.strays.clear();
    golden("leave", &commands(&plan(&desired(&view(left), &facts()).unwrap(), &kernel)));
}

#[test]
fn a_host_with_another_underlay_address_costs_one_entry() {
    let first = desired(&view(small()), &facts()).unwrap();
    let kernel = carried_out(&first, &Tables::default());
    let mut moved = small();
    moved.hosts[1].underlay = Some("192.0.2.22".parse().unwrap());
    assert_eq!(
        commands(&plan(&desired(&view(moved), &facts()).unwrap(), &kernel)),
        ["bridge fdb replace 02:4c:00:00:00:02 dev limpet1 dst 192.0.2.22 self permanent"]
    );
}

#[test]
fn a_second_gateway_joins_the_group_under_its_number() {
    let first = desired(&view(small()), &facts()).unwrap();
    let kernel = carried_out(&first, &Tables::default());
    let mut more = small();
    more.hosts.push(host("gw-2", 10, &[Role::Gateway]));
    let lines = commands(&plan(&desired(&view(more), &facts()).unwrap(), &kernel));
    let groups: Vec<_> = lines.iter().filter(|line| line.contains(" group ")).collect();
    assert_eq!(groups.len(), 2, "{lines:#?}");
    for line in groups {
        assert!(line.contains("type resilient buckets 64 idle_timer 30"), "{line}");
    }
    assert!(!lines.iter().any(|line| line.contains("198.51.100.0/24")), "{lines:#?}");
}

#[test]
fn a_device_with_another_local_address_is_made_anew_with_all_that_goes_with_it() {
    let first = desired(&view(small()), &facts()).unwrap();
    let kernel = carried_out(&first, &Tables::default());
    let mut moved = small();
    moved.hosts[0].underlay = Some("192.0.2.11".parse().unwrap());
    let moved = desired(&view(moved), &facts()).unwrap();
    let lines = commands(&plan(&moved, &kernel));
    assert!(lines[0].starts_with("ip link del limpet1 && ip link add limpet1 "), "{lines:#?}");
    assert!(lines[0].contains(" local 192.0.2.11 "), "{lines:#?}");
    let kernel = carried_out(&moved, &kernel);
    assert_eq!(plan(&moved, &kernel), []);
}

#[test]
fn routes_of_interfaces_whose_containers_are_not_known_are_left_alone() {
    let first = desired(&view(small()), &facts()).unwrap();
    let kernel = carried_out(&first, &with_veth(Tables::default(), 1, 1, 4097));
    let mut without = small();
    without.attachments.clear();
    let ended = desired(&view(without), &facts()).unwrap();
    assert_eq!(plan(&ended, &kernel), []);
}

#[test]
fn an_interface_in_the_group_of_the_dead_gets_no_route() {
    let first = desired(&view(small()), &facts()).unwrap();
    let kernel = with_veth(Tables::default(), 1, 1, GROUP_OF_THE_DEAD);
    let lines = commands(&plan(&first, &kernel));
    assert!(!lines.iter().any(|line| line.contains(&ifname(1))), "{lines:#?}");
}

#[test]
fn an_answer_that_is_ahead_of_the_watch_gives_its_container_a_route() {
    let mut snapshot = small();
    snapshot.attachments.clear();
    let mut view = view(snapshot);
    let (attachment, network) = (fixture::attachment(1, 1), fixture::network(1));
    assert!(view.claimed(&Claimed { attachment, network, revision: 2 }));
    let desired = desired(&view, &facts()).unwrap();
    let lines = commands(&plan(&desired, &with_veth(Tables::default(), 1, 1, 4097)));
    let route = format!(
        "ip route replace 10.32.0.1/32 dev {} scope link src 192.0.2.1 table 7601 proto 76",
        ifname(1)
    );
    assert!(lines.contains(&route), "{lines:#?}");
}

#[test]
fn nexthops_of_other_programs_keep_their_numbers() {
    let desired = desired(&view(small()), &facts()).unwrap();
    let alone = carried_out(&desired, &Tables::default());
    let mut taken = Tables::default();
    for id in alone.nexthops.keys() {
        taken.nexthops.insert(*id, FoundNexthop { ours: false, leads: Nexthop::Other });
    }
    let kernel = carried_out(&desired, &taken);
    assert_eq!(kernel.nexthops.len(), 2 * alone.nexthops.len());
    assert_eq!(plan(&desired, &kernel), []);
}

#[test]
fn a_host_without_an_address_of_a_family_carries_its_containers_all_the_same_and_says_so() {
    let facts = HostFacts { addresses: vec!["192.0.2.1".parse().unwrap()], ..facts() };
    let with = desired(&view(small()), &self::facts()).unwrap();
    let desired = desired(&view(small()), &facts).unwrap();
    assert_eq!(desired.routes.keys().collect::<Vec<_>>(), with.routes.keys().collect::<Vec<_>>());
    let source = |six: bool| {
        let ways = desired
            .routes
            .iter()
            .filter(move |(key, _)| key.destination.address().is_ipv6() == six);
        let ways = ways.filter(|(_, route)| !matches!(route.way, Way::Unreachable | Way::Throw));
        ways.map(|(_, route)| route.source).collect::<BTreeSet<_>>()
    };
    assert_eq!(source(true), [None].into());
    assert_eq!(source(false), [Some("192.0.2.1".parse().unwrap())].into());
    assert_eq!(desired.problems.len(), 1);
    assert!(desired.problems[0].to_string().contains("no global IPv6 address"));
}

#[test]
fn a_route_that_changes_is_replaced_and_never_deleted() {
    let first = desired(&view(small()), &facts()).unwrap();
    let kernel = carried_out(&first, &Tables::default());
    let mut addresses = facts().addresses;
    addresses[0] = "192.0.2.101".parse().unwrap();
    let moved = desired(&view(small()), &HostFacts { addresses, ..facts() }).unwrap();
    let lines = commands(&plan(&moved, &kernel));
    assert!(lines.len() > 2, "{lines:#?}");
    for line in lines {
        assert!(
            line.starts_with("ip route replace ") && line.contains("src 192.0.2.101"),
            "{line}"
        );
    }
}

#[test]
fn what_is_known_of_one_address_goes_before_what_is_known_of_its_block() {
    let mut snapshot = small();
    let network = fixture::network(1).name;
    let here = "10.32.0.64".parse().unwrap();
    snapshot.blocks = vec![block("p4", 1, "10.32.0.64/32", "node-b")];
    snapshot.strays = vec![Stray { network, address: here, host: "node-a".parse().unwrap() }];
    let desired = desired(&view(snapshot), &facts()).unwrap();
    let to_it = |key: &&RouteKey| key.destination.to_string() == "10.32.0.64/32";
    assert_eq!(desired.routes.keys().find(to_it), None);
}

#[test]
fn a_gateway_forwards_from_the_device_of_its_own_prefix_and_has_no_route_to_it() {
    let facts = HostFacts { name: "gw".parse().unwrap(), ..facts() };
    let mut snapshot = small();
    snapshot.hosts.push(host("gw-2", 10, &[Role::Gateway]));
    let desired = desired(&view(snapshot), &facts).unwrap();
    assert!(!desired.routes.keys().any(|key| key.destination.to_string() == "198.51.100.0/24"));
    assert_eq!(desired.ruleset.external, ["eth1".to_owned()].into());
    let settings: Vec<_> =
        desired.settings.iter().map(|(setting, value)| format!("{setting}={value}")).collect();
    assert!(settings.contains(&"net/ipv4/conf/eth1/forwarding=1".to_owned()), "{settings:?}");
    assert!(settings.contains(&"net/ipv6/conf/eth1/force_forwarding=1".to_owned()));
    assert!(!settings.iter().any(|setting| setting.contains("/all/")));
}

#[test]
fn an_older_kernel_keeps_its_router_advertisements_when_forwarding_is_switched_on() {
    let forwarding = Forwarding6::Global { accept_ra: vec!["eth0".to_owned()], router: false };
    let desired = desired(&view(small()), &HostFacts { forwarding, ..facts() }).unwrap();
    let last: Vec<_> = desired
        .settings
        .iter()
        .rev()
        .take(2)
        .map(|(setting, value)| format!("{setting}={value}"))
        .collect();
    assert_eq!(last, ["net/ipv6/conf/all/forwarding=1", "net/ipv6/conf/eth0/accept_ra=2"]);
}

/// Whether packets for a route get to where it leads.
fn works(tables: &Tables, key: RouteKey) -> bool {
    let hop_works = |hop: &Hop| {
        let mac = tables.neighbours.get(&(hop.device.clone(), hop.via.into()));
        mac.is_some_and(|mac| {
            tables.fdb.iter().any(|entry| entry.device == hop.device && entry.mac == mac.bytes())
        })
    };
    let leads = |id: &u32| tables.nexthops.get(id).map(|nexthop| &nexthop.leads);
    let id_works = |id: &u32| matches!(leads(id), Some(Nexthop::Hop(hop)) if hop_works(hop));
    tables.routes.iter().filter(|route| route.key == key).any(|route| match &route.target {
        Target::Nexthop(id) => match leads(id) {
            Some(Nexthop::Group(members)) => members.iter().all(id_works),
            _ => id_works(id),
        },
        Target::Link(_) => true,
        Target::Unreachable | Target::Throw | Target::Other => false,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn one_pass_converges_and_a_second_does_nothing(
        before in cluster(),
        harms in prop::collection::vec(harm(), 0..5),
        after in cluster(),
    ) {
        let first = desired(&view(before), &facts()).unwrap();
        let empty = with_veth(Tables::default(), 1, 1, 4097);
        let found = harms.iter().fold(carried_out(&first, &empty), do_harm);
        let wanted = desired(&view(after), &facts()).unwrap();
        let kernel = carried_out(&wanted, &found);
        prop_assert_eq!(commands(&plan(&wanted, &kernel)), Vec::<String>::new());

        let entries = resolve(&wanted, &kernel);
        prop_assert_eq!(&kernel.devices, &wanted.devices);
        prop_assert_eq!(&kernel.fdb, &wanted.fdb);
        prop_assert_eq!(&kernel.rules, &entries.rules);
        prop_assert!(kernel.routes.is_superset(&entries.routes));
        let foreign = |id: &u32| found.nexthops.get(id).filter(|nexthop| !nexthop.ours);
        for id in found.nexthops.keys().filter(|id| foreign(id).is_some()) {
            prop_assert!(kernel.nexthops[id] == found.nexthops[id], "what is not limpet's is left alone");
        }
    }

    #[test]
    fn a_path_that_works_before_and_after_works_all_the_time(
        before in cluster(),
        harms in prop::collection::vec(harm(), 0..3),
        after in cluster(),
    ) {
        let first = desired(&view(before), &facts()).unwrap();
        let found = harms.iter().fold(carried_out(&first, &Tables::default()), do_harm);
        let wanted = desired(&view(after), &facts()).unwrap();
        prop_assume!(remade(&wanted, &found).is_empty());
        let last = carried_out(&wanted, &found);
        let keys: BTreeSet<RouteKey> = found.routes.iter().map(|route| route.key).collect();
        let kept: Vec<_> =
            keys.into_iter().filter(|key| works(&found, *key) && works(&last, *key)).collect();
        let mut kernel = found.clone();
        for step in plan(&wanted, &found) {
            carry_out(&mut kernel, &step);
            for key in &kept {
                prop_assert!(works(&kernel, *key), "{key:?} is cut by {step}");
            }
        }
    }

    /// What is only recalled is older than what the kernel has, for all that anybody knows.
    #[test]
    fn what_is_only_recalled_takes_nothing_away(before in cluster(), after in cluster()) {
        let found = carried_out(&desired(&view(before), &facts()).unwrap(), &Tables::default());
        let wanted = desired(&view(after), &facts()).unwrap();
        let careful = Desired { careful: true, ..wanted };
        let steps = plan(&careful, &found);
        for command in commands(&steps) {
            prop_assert!(!command.contains(" del "), "{command}");
        }
        let kernel = carried_out(&careful, &found);
        for (key, _) in resolve(&careful, &found).neighbours {
            prop_assert!(kernel.neighbours.contains_key(&key), "and what is missing is there");
        }
    }
}
