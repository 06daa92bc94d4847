//! Pure: what the address spaces of networks let pools and hosts be, tried.

use limpet_api::Change;
use limpet_api::config::{HostChange, NetworkChange, NetworkSpec, PoolChange, PoolSpec};
use limpet_net_types::Token;
use proptest::prelude::*;

use super::*;
use crate::keys::Subject;
use crate::rules::sessions::Liveness;
use crate::rules::{hosts, networks, pools};
use crate::state::sample::{Sample, name};

/// Networks blue and green of the shared space, red and pink with one of their own; hosts a and b.
fn sample() -> Sample {
    let mut sample = Sample::new();
    for (network, own_space) in [("blue", false), ("green", false), ("red", true), ("pink", true)] {
        let spec = NetworkSpec { own_space, ..NetworkSpec::default() };
        sample.decided(|state| networks::create(state, &name(network), &spec)).unwrap();
    }
    for (n, host) in [(1, "a"), (2, "b")] {
        sample.host(host);
        sample.change_host(host, |host| host.addresses = vec![name(&format!("192.0.2.{n}"))]);
    }
    sample
}

fn pool(sample: &mut Sample, pool: &str, network: &str, range: &str) -> Result<(), ApiError> {
    let spec = serde_json::json!({ "network": network, "range": range });
    let spec: PoolSpec = serde_json::from_value(spec).unwrap();
    sample.decided(|state| pools::create(state, &name(pool), &spec)).map(drop)
}

fn resize(sample: &mut Sample, pool: &str, range: &str) -> Result<(), ApiError> {
    let change = PoolChange { range: Some(name(range)), ..PoolChange::default() };
    sample.decided(|state| pools::change(state, &name(pool), &change)).map(drop)
}

fn set(sample: &mut Sample, host: &str, networks: &[&str]) -> Result<(), ApiError> {
    let networks = Change::Set(networks.iter().map(|network| name(network)).collect());
    change(sample, host, &HostChange { networks, ..HostChange::default() })
}

fn roles(sample: &mut Sample, host: &str, roles: &[Role]) -> Result<(), ApiError> {
    let roles = Some(roles.iter().copied().collect());
    change(sample, host, &HostChange { roles, ..HostChange::default() })
}

fn change(sample: &mut Sample, host: &str, change: &HostChange) -> Result<(), ApiError> {
    sample.decided(|state| hosts::change(state, &name(host), change, Liveness::Alive)).map(drop)
}

fn allow(sample: &mut Sample, into: &str, from: &[&str]) -> Result<(), ApiError> {
    let allow = Some(from.iter().map(|network| name(network)).collect());
    let change = NetworkChange { allow, ..NetworkChange::default() };
    sample.decided(|state| networks::change(state, &name(into), &change)).map(drop)
}

fn code<T: std::fmt::Debug>(result: Result<T, ApiError>) -> ErrorCode {
    result.unwrap_err().code
}

#[test]
fn networks_with_a_space_of_their_own_may_have_the_ranges_of_others() {
    let mut sample = sample();
    for network in ["blue", "red", "pink"] {
        pool(&mut sample, network, network, "10.0.0.0/24").unwrap();
    }
    assert_eq!(code(pool(&mut sample, "x", "green", "10.0.0.0/25")), ErrorCode::PoolOverlaps);
    assert_eq!(code(pool(&mut sample, "x", "red", "10.0.0.0/25")), ErrorCode::PoolOverlaps);
    pool(&mut sample, "more", "red", "10.0.1.0/24").unwrap();
    assert_eq!(code(resize(&mut sample, "more", "10.0.0.0/23")), ErrorCode::PoolOverlaps);
    pool(&mut sample, "x", "green", "10.0.1.0/24").unwrap();
}

#[test]
fn a_host_for_containers_alone_may_be_in_own_spaces_that_overlap_and_no_other_may() {
    let mut sample = sample();
    for network in ["red", "pink"] {
        pool(&mut sample, network, network, "10.0.0.0/24").unwrap();
    }
    pool(&mut sample, "apart", "blue", "10.1.0.0/24").unwrap();
    set(&mut sample, "a", &["blue", "red", "pink"]).unwrap();
    assert_eq!(
        code(roles(&mut sample, "a", &[Role::Node, Role::Member])),
        ErrorCode::SpacesOverlap
    );
    roles(&mut sample, "b", &[Role::Member]).unwrap();
    let error = set(&mut sample, "b", &["pink", "red"]).unwrap_err();
    assert_eq!(
        error.message,
        "10.0.0.0/24 of network pink and 10.0.0.0/24 of network red have addresses in common, and \
         host b would be a member of both: only a host that has no role but node can be, because \
         its own packets to such an address could mean either"
    );
    set(&mut sample, "b", &["blue", "pink"]).unwrap();
    assert_eq!(code(resize(&mut sample, "pink", "10.0.0.0/15")), ErrorCode::SpacesOverlap);
}

#[test]
fn no_host_is_in_the_shared_space_and_in_another_by_one_address() {
    let mut sample = sample();
    for network in ["blue", "red"] {
        pool(&mut sample, network, network, "10.0.0.0/24").unwrap();
    }
    let error = set(&mut sample, "a", &["blue", "red"]).unwrap_err();
    assert_eq!(
        error.message,
        "10.0.0.0/24 of network blue and 10.0.0.0/24 of network red have addresses in common, and \
         host a would be a member of both: no host can be, because network blue has the shared \
         address space, whose packets carry no mark"
    );
    set(&mut sample, "a", &["green", "red"]).unwrap();
    assert_eq!(code(pool(&mut sample, "x", "green", "10.0.0.0/16")), ErrorCode::PoolOverlaps);
    pool(&mut sample, "apart", "green", "10.1.0.0/24").unwrap();
    for (wider, range) in [("apart", "10.1.0.0/16"), ("red", "10.0.0.0/15")] {
        let resized = resize(&mut sample, wider, range);
        let expected = (wider == "red").then_some(ErrorCode::SpacesOverlap);
        assert_eq!(resized.err().map(|error| error.code), expected, "{wider}");
    }
    assert_eq!(code(pool(&mut sample, "x", "red", "10.1.7.0/24")), ErrorCode::SpacesOverlap);
    set(&mut sample, "b", &["blue"]).unwrap();
    pool(&mut sample, "x", "pink", "10.0.0.0/24").unwrap();
}

#[test]
fn a_host_that_is_where_it_cannot_be_any_more_may_still_be_labelled() {
    let mut sample = sample();
    for network in ["blue", "red"] {
        pool(&mut sample, network, network, "10.0.0.0/24").unwrap();
    }
    let both = [name("blue"), name("red")];
    sample.change_host("a", |host| host.networks = Some(both.into()));
    let labels = Some([(name("rack"), "7".to_owned())].into());
    change(&mut sample, "a", &HostChange { labels, ..HostChange::default() }).unwrap();
    set(&mut sample, "a", &["red"]).unwrap();
}

#[test]
fn a_pool_of_a_networks_own_space_may_have_the_addresses_of_hosts_that_are_no_members() {
    let mut sample = sample();
    let alive = sample.state().session(&name("b")).unwrap().record.clone();
    let alive = crate::records::Alive { on_link: [name("172.16.0.0/24")].into(), ..alive };
    sample.put(&Subject::Session(name("b")), &alive);
    set(&mut sample, "a", &["red"]).unwrap();
    for (range, blue, red) in [
        ("192.0.2.0/31", ErrorCode::PoolContainsHost, Some(ErrorCode::PoolContainsHost)),
        ("192.0.2.2/32", ErrorCode::PoolContainsHost, None),
        ("172.16.0.0/16", ErrorCode::PoolContainsHost, None),
    ] {
        assert_eq!(code(pool(&mut sample, "x", "blue", range)), blue, "{range}");
        let made = pool(&mut sample, &format!("red-{}", range.len()), "red", range);
        assert_eq!(made.err().map(|error| error.code), red, "{range}");
    }
    for networks in [&["red"][..], &["blue", "red"]] {
        assert_eq!(code(set(&mut sample, "b", networks)), ErrorCode::HostAddressConflict);
    }
}

#[test]
fn a_host_leaves_a_network_when_nothing_of_it_is_attached_there_any_more() {
    let mut sample = sample();
    pool(&mut sample, "p", "blue", "10.0.0.0/24").unwrap();
    sample.attach("a", "c1");
    set(&mut sample, "a", &["blue"]).unwrap();
    let error = set(&mut sample, "a", &["green", "red"]).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (
            ErrorCode::HostInUse,
            "host a still has attachments to network blue, of container c1 at least"
        )
    );
    assert_eq!(code(set(&mut sample, "a", &["blue", "none"])), ErrorCode::NetworkNotFound);
    let idle = |sample: &Sample| crate::alloc::blocks::idle(sample.state()).count();
    assert_eq!((idle(&sample), sample.state().blocks().count()), (0, 1));
    let attached = sample.state().attachments().next().unwrap().record.clone();
    let (session, reason) = (Token::from_bits(7), limpet_api::book::EndReason::Detached);
    let request = limpet_api::host::EndRequest { session, uid: attached.uid, reason };
    sample.decided(|state| crate::alloc::ends::end(state, &attached.key, &request)).unwrap();
    set(&mut sample, "a", &["green"]).unwrap();
    assert_eq!(idle(&sample), 1, "a block that it has no use for");
    set(&mut sample, "b", &["green"]).unwrap();
    let of_all = HostChange { networks: Change::Clear, ..HostChange::default() };
    change(&mut sample, "b", &of_all).unwrap();
    assert!(sample.state().host(&name("b")).unwrap().record.networks.is_none());
}

#[test]
fn a_change_of_membership_relies_on_what_other_controllers_may_attach_meanwhile() {
    let sample = sample();
    let networks = Change::Set([name("green")].into());
    let change = HostChange { networks, ..HostChange::default() };
    let decided = hosts::change(sample.state(), &name("a"), &change, Liveness::Alive);
    let claimed = format!("{}blue/c1/eth0", crate::keys::attachments_of(&name("a")));
    assert!(decided.draft.into_txn().quiet.iter().any(|quiet| quiet.covers(&claimed)));
}

#[test]
fn a_claim_on_a_host_that_is_no_member_says_what_to_run() {
    use limpet_api::host::{ClaimRequest, Wanted};
    let mut sample = sample();
    pool(&mut sample, "p", "red", "10.0.0.0/24").unwrap();
    let claim = |state: &State| {
        let key = limpet_api::book::AttachmentKey {
            host: name("a"),
            network: name("red"),
            container: name("c1"),
            ifname: name("eth0"),
        };
        let token = Token::from_bits(7);
        let request = ClaimRequest { session: token, uid: token, wanted: Wanted::default() };
        crate::alloc::claim::claim(state, &key, &request, crate::alloc::Patience::Over)
    };
    let error = sample.decided(claim).map(drop).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (
            ErrorCode::HostNotMember,
            "host a is not a member of network red: limpetctl host set a --networks blue,green,red"
        )
    );
    set(&mut sample, "a", &["blue", "green", "red"]).unwrap();
    sample.decided(claim).unwrap();
}

#[test]
fn only_networks_of_the_shared_space_are_opened_to_each_other() {
    let mut sample = sample();
    allow(&mut sample, "blue", &["green"]).unwrap();
    let allowed = sample.state().network(&name("blue")).unwrap().record.allow.clone();
    assert_eq!(allowed, [name("green")].into());
    for (into, from, wrong) in [
        ("blue", "blue", ErrorCode::Invalid),
        ("blue", "none", ErrorCode::NetworkNotFound),
        ("blue", "red", ErrorCode::Invalid),
        ("red", "blue", ErrorCode::Invalid),
        ("red", "pink", ErrorCode::Invalid),
    ] {
        assert_eq!(code(allow(&mut sample, into, &[from])), wrong, "{from} into {into}");
    }
    sample.network("grey");
    let (also_allow, deny) = ([name("grey")].into(), [name("green")].into());
    let change = NetworkChange { also_allow, deny, ..NetworkChange::default() };
    for _ in 0..2 {
        let changed = sample.decided(|state| networks::change(state, &name("blue"), &change));
        assert_eq!(changed.unwrap().record.allow, [name("grey")].into(), "again the same");
    }
    allow(&mut sample, "blue", &[]).unwrap();
}

#[test]
fn a_network_that_is_named_elsewhere_stays() {
    let mut sample = sample();
    let delete = |sample: &mut Sample, network: &str| {
        let deleted = sample.decided(|state| networks::delete(state, &name(network)));
        deleted.map_err(|error| (error.code, error.message))
    };
    allow(&mut sample, "blue", &["green"]).unwrap();
    set(&mut sample, "b", &["red"]).unwrap();
    let text = "network green is allowed into network blue: limpetctl network deny green blue";
    assert_eq!(delete(&mut sample, "green"), Err((ErrorCode::NetworkInUse, text.to_owned())));
    assert_eq!(delete(&mut sample, "red").unwrap_err().0, ErrorCode::NetworkInUse);
    delete(&mut sample, "blue").unwrap();
    delete(&mut sample, "green").unwrap();
}

/// One thing that an operator does.
#[derive(Clone, Debug)]
enum Act {
    Pool(usize, usize, String),
    Resize(usize, String),
    Join(bool, Vec<usize>),
    Roles(bool, bool),
}

const NETWORKS: [&str; 4] = ["blue", "green", "red", "pink"];

fn act() -> impl Strategy<Value = Act> {
    let range =
        || (0_u8..8, 29_u8..33).prop_map(|(n, length)| format!("10.0.0.{}/{length}", n * 8));
    prop_oneof![
        (0..6_usize, 0..4_usize, range()).prop_map(|(pool, of, range)| Act::Pool(pool, of, range)),
        (0..6_usize, range()).prop_map(|(pool, range)| Act::Resize(pool, range)),
        (any::<bool>(), prop::collection::vec(0..4_usize, 0..4))
            .prop_map(|(host, networks)| Act::Join(host, networks)),
        (any::<bool>(), any::<bool>()).prop_map(|(host, member)| Act::Roles(host, member)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_operators_do_no_address_means_two_things(acts in prop::collection::vec(act(), 1..24)) {
        let mut sample = sample();
        for act in acts {
            let host = |second: bool| if second { "b" } else { "a" };
            // Refused or not: what is there then is right.
            let _ = match act {
                Act::Pool(n, of, range) => pool(&mut sample, &format!("p{n}"), NETWORKS[of], &range),
                Act::Resize(n, range) => resize(&mut sample, &format!("p{n}"), &range),
                Act::Join(which, networks) => {
                    let networks: Vec<_> = networks.into_iter().map(|n| NETWORKS[n]).collect();
                    set(&mut sample, host(which), &networks)
                }
                Act::Roles(which, true) => roles(&mut sample, host(which), &[Role::Member]),
                Act::Roles(which, false) => roles(&mut sample, host(which), &[Role::Node]),
            };
            let state = sample.state();
            let pools: Vec<&Pool> = state.pools().map(|pool| &pool.record).collect();
            let network = |pool: &Pool| &state.network(&pool.network).unwrap().record;
            for (i, one) in pools.iter().enumerate() {
                for other in pools.iter().skip(i + 1).filter(|p| p.range.overlaps(one.range)) {
                    let (a, b) = (network(one), network(other));
                    prop_assert!(a.name != b.name && (a.own_space || b.own_space));
                    for host in state.hosts().map(|host| &host.record) {
                        let both = host.is_member_of(a) && host.is_member_of(b);
                        let apart = a.own_space && b.own_space && !host.is(Role::Member);
                        prop_assert!(!both || apart, "{}", host.name);
                    }
                }
            }
        }
    }
}
