//! Pure: pages of small lists, put together and held against the whole.

use limpet_api::host::{ClaimRequest, Wanted};
use limpet_net_types::Token;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use super::*;
use crate::alloc::Patience;
use crate::alloc::claim::claim;
use crate::state::sample::{Sample, name};

const NETWORKS: [&str; 2] = ["blue", "red"];
const NAMESPACES: [&str; 3] = ["_", "prod", "test"];
const NAMES: [&str; 4] = ["db-0", "web-0", "web-1", "x"];
const HOSTS: [&str; 3] = ["a", "b", "c"];

/// Some forty attachments, each with a reservation where its name has an ordinal.
fn sample() -> Sample {
    let mut sample = Sample::new();
    for host in HOSTS {
        sample.host(host);
    }
    for (number, network) in NETWORKS.iter().enumerate() {
        sample.network(network);
        for (kind, range) in
            [("four", format!("10.{number}.0.0/26")), ("six", "fd00::/122".to_owned())]
        {
            sample.pool(&format!("{network}-{kind}"), &range, |pool| pool.network = name(network));
        }
    }
    let (mut number, mut of_host) = (0_u32, HOSTS.iter().cycle());
    for network in NETWORKS {
        for namespace in NAMESPACES {
            for workload in NAMES.iter().chain([&""; 3]) {
                number += 1;
                let key = AttachmentKey {
                    host: name(of_host.next().unwrap()),
                    network: name(network),
                    container: name(&format!("{number:012x}")),
                    ifname: name("eth0"),
                };
                let wanted = Wanted {
                    namespace: name(namespace),
                    name: workload.parse().ok(),
                    ..Wanted::default()
                };
                let uid = Token::from_bits(u128::from(number) << 96);
                let request = ClaimRequest { session: Token::from_bits(7), uid, wanted };
                sample.decided(|state| claim(state, &key, &request, Patience::Over)).unwrap();
            }
        }
    }
    sample
}

fn filter() -> impl Strategy<Value = Filter> {
    let address = prop_oneof![
        Just("10.0.0.1"),
        Just("10.1.0.2"),
        Just("fd00::1"),
        Just("fd00::5"),
        Just("192.0.2.1"),
    ];
    let like = select(vec!["web-0", "x", "00000000001", "000000000012", "0000000", "no-such"]);
    (
        of(select(NETWORKS.to_vec())),
        of(select(NAMESPACES.to_vec())),
        of(select(NAMES.to_vec())),
        of(select(HOSTS.to_vec())),
        prop_oneof![4 => Just(None), 1 => address.prop_map(Some)],
        prop_oneof![4 => Just(None), 1 => like.prop_map(Some)],
        prop_oneof![4 => Just(None), 1 => Just(Some("blue-six"))],
    )
        .prop_map(|(network, namespace, workload, host, address, like, pool)| Filter {
            network: network.map(name),
            namespace: namespace.map(name),
            name: workload.map(name),
            host: host.map(name),
            pool: pool.map(name),
            address: address.map(name),
            like: like.map(str::to_owned),
            ..Filter::default()
        })
}

/// All pages, one after another, each with some records at most.
fn all<T>(
    filter: &Filter,
    limit: usize,
    page: impl Fn(&Filter) -> Result<Listing<T>, ApiError>,
) -> Vec<T> {
    let mut filter = Filter { limit: Some(limit), ..filter.clone() };
    let mut items = Vec::new();
    loop {
        let listing = page(&filter).unwrap();
        assert!(listing.items.len() <= limit);
        items.extend(listing.items);
        match listing.next {
            Some(next) => filter.after = Some(next),
            None => return items,
        }
    }
}

#[test]
fn the_pages_of_a_list_are_what_matches_in_order() {
    let sample = sample();
    let state = sample.state();
    proptest!(|(filter in filter(), limit in 1..6_usize, patience in 1..50_usize)| {
        let records = state.attachments().map(|entry| entry.record.clone());
        let expected: Vec<_> = records.filter(|found| filter.wants_attachment(found)).collect();
        let pages = all(&filter, limit, |filter| attachments_page(state, filter, patience));
        prop_assert_eq!(pages, expected);
        let records = state.reservations().map(|entry| with_holder(state, &entry.record));
        let expected: Vec<_> = records.filter(|found| filter.wants_reservation(found)).collect();
        let pages = all(&filter, limit, |filter| reservations_page(state, filter, patience));
        prop_assert_eq!(pages, expected);
    });
}

#[test]
fn one_name_is_found_without_looking_at_the_others() {
    let sample = sample();
    let filter = Filter { name: Some(name("web-1")), ..Filter::default() };
    // One look for each namespace at what stands before the name, one at the name, one beyond.
    let most = NETWORKS.len() * NAMESPACES.len() * 3;
    let found = reservations_page(sample.state(), &filter, most).unwrap();
    assert_eq!((found.items.len(), found.next), (6, None));
}

#[test]
fn what_no_list_gave_is_no_cursor() {
    let sample = sample();
    let ask = |query: serde_json::Value| {
        let filter: Filter = serde_json::from_value(query).unwrap();
        attachments(sample.state(), &filter).map_err(|error| (error.code, error.message))
    };
    let refused = |query| ask(query).unwrap_err();
    for after in ["blue/prod/web-0", "x", "a/b/c/d/e"] {
        assert_eq!(refused(json!({ "after": after })).0, ErrorCode::BadRequest);
    }
    let (code, text) = refused(json!({ "limit": 0 }));
    assert_eq!(
        (code, text.as_str()),
        (ErrorCode::BadRequest, "limit is 0, from 1 to 5000 can be asked for")
    );
    assert_eq!(refused(json!({ "limit": 5001 })).0, ErrorCode::BadRequest);
    assert_eq!(ask(json!({ "limit": 5000 })).unwrap().items.len(), 42);
}
