//! Pure: what is found of a host with one of each difference.

use limpet_api::host::Snapshot;
use limpet_net_types::host_prefix;

use super::*;
use crate::evidence::Begun;
use crate::fixture;
use crate::flights::Flights;
use crate::layout::{Device, RouteKey, TABLE_OVERLAY};
use crate::veths::Interface;

fn ifname(n: u8) -> String {
    ifname_of(&fixture::attachment(n, 0).key)
}

fn route(n: u8) -> Route {
    let destination = host_prefix(format!("10.32.0.{n}").parse().unwrap());
    let key = RouteKey { table: TABLE_OVERLAY, destination, metric: 0 };
    Route { key, target: Target::Link(ifname(n)), source: None }
}

#[test]
fn each_difference_is_found_with_what_it_is_about_and_what_repairs_it() {
    let mut earlier = fixture::attachment(2, 2);
    earlier.boot = Token::from_bits(9);
    let mut mounted = fixture::attachment(3, 3);
    mounted.netns = "mounted".into();
    let attachments = vec![
        fixture::attachment(1, 1),
        earlier,
        mounted,
        fixture::attachment(4, 4),
        fixture::attachment(5, 5),
        fixture::attachment(6, 6),
    ];
    let view = fixture::view(Snapshot { attachments, ..Snapshot::default() });
    let interface = |n: u8, up, severed| {
        (
            Token::from_bits(n.into()),
            Interface {
                name: ifname(n),
                up,
                severed,
                index: 7,
                mtu: 1450,
                peer: 2,
                netns: Some(0),
            },
        )
    };
    let interfaces: Interfaces = [
        interface(4, true, false),
        interface(5, false, false),
        interface(7, true, false),
        interface(8, true, false),
        interface(9, false, true),
    ]
    .into();
    let mut flights = Flights::default();
    flights.begin(Token::from_bits(6), 1, crate::view::Key::of(&fixture::attachment(6, 6)));
    let sight = Begun::now(&view, &flights).found(interfaces.keys().copied().collect());
    let record = fixture::record(7, 7);
    let orphans =
        Orphans { assert: vec![record.attachment.clone()], sever: [Token::from_bits(8)].into() };
    let device = Device { vxlan: None, mtu: 1450, group: 4097, up: true };
    let steps = [
        Step::NewDevice { name: "limpet1".to_owned(), device, anew: false },
        Step::SetRoute(route(4)),
        Step::DelRoute(route(9)),
        Step::DelNexthop(7),
        Step::DelNexthop(8),
    ];
    let found = findings(&Seen {
        boot: Token::from_bits(1),
        view: &view,
        records: &[(Token::from_bits(7), record)].into(),
        severed: &[(Token::from_bits(9), "its address is another's".to_owned())].into(),
        interfaces: &interfaces,
        sight: &sight,
        orphans: &orphans,
        netns_exists: &|path| path == "mounted",
        desired: &Desired::default(),
        steps: &steps,
    });
    let told: Vec<String> = found
        .iter()
        .map(|finding| {
            let uid = finding.uid.map_or_else(|| "-".to_owned(), |uid| uid.bits().to_string());
            let container = finding.attachment.as_ref().map_or("-", |key| key.container.as_str());
            format!("{} {container} {uid}", finding.kind.as_str())
        })
        .collect();
    assert_eq!(
        told,
        [
            "attachment-without-interface c1 1",
            "attachment-without-interface c2 2",
            "attachment-without-interface c3 3",
            "kernel-differs c5 5",
            "interface-without-attachment c7 7",
            "interface-without-attachment - 8",
            "interface-severed - 9",
            "device-missing - -",
            "route-missing c4 4",
            "route-extra - -",
            "kernel-differs - -",
        ]
    );
    assert!(found[1].what.contains("earlier boot") && found[2].repair.contains("GC"));
    assert!(found[6].what.contains("its address is another's"), "{}", found[6].what);
    assert!(found[10].what.starts_with("2 more steps"), "{}", found[10].what);
    assert!(found.iter().all(|finding| !finding.repair.is_empty()));
}
