//! Pure: passes during which the watch tells of something, a claim is answered and a plugin makes its interface.

use limpet_api::host::{Changes, SharedChange, Snapshot, Stray, WatchEvent, WatchLine};
use limpet_net_types::{Token, host_prefix};
use proptest::prelude::*;

use super::plan;
use super::tests::{carried_out, facts, ifname, small, with_veth};
use crate::desired::desired;
use crate::fixture;
use crate::layout::{Route, RouteKey, TABLE_OVERLAY, Tables, Target};
use crate::model::carry_out;
use crate::view::View;

/// What happens around a container that comes from another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The watch tells that its address is a stray at the other host. It may be late.
    Stray,
    /// The claim of its address is answered.
    Claim,
    /// The plugin has made its interface, and its route.
    Made,
}

#[derive(Clone)]
struct World {
    view: View,
    kernel: Tables,
}

fn key() -> RouteKey {
    let destination = host_prefix(fixture::attachment(1, 7).addresses[0].address);
    RouteKey { table: TABLE_OVERLAY, destination, metric: 0 }
}

fn happen(world: &mut World, event: Event) {
    let attachment = fixture::attachment(1, 7);
    match event {
        Event::Stray => {
            let network = attachment.key.network.clone();
            let (address, host) = (attachment.addresses[0].address, "node-b".parse().unwrap());
            let shared = vec![SharedChange::StraySet(Stray { network, address, host })];
            let event = WatchEvent::Changes(Changes { shared, ..Changes::default() });
            let line = WatchLine { store: Token::from_bits(1), revision: 2, event };
            world.view.apply(line).unwrap();
        }
        Event::Claim => assert!(world.view.claimed(&fixture::claimed(attachment, 3))),
        Event::Made => {
            world.kernel = with_veth(world.kernel.clone(), 1, 7, 4097);
            let source = facts().primary(limpet_net_types::Family::V4);
            let route = Route { key: key(), target: Target::Link(ifname(1)), source };
            world.kernel.routes.retain(|old| old.key != key());
            world.kernel.routes.insert(route);
        }
    }
}

/// A host that is as it should be, before anything happens.
fn before() -> World {
    let view = fixture::view(Snapshot { attachments: vec![], ..small() });
    let kernel = carried_out(&desired(&view, &facts()).unwrap(), &Tables::default());
    World { view, kernel }
}

proptest! {
    /// The dump, the look at the cluster and the carrying out happen at any times, in this order. The claim is known
    /// when the cluster is looked at, as it is whenever the dump has the interface, or the interface comes last.
    #[test]
    fn no_pass_takes_a_containers_route_for_a_stray(
        (late, passed) in (0..=2_usize, any::<bool>()),
        mut times in prop::collection::vec(0..=3_usize, 3),
    ) {
        times.sort_unstable();
        let mut events = vec![Event::Claim, Event::Made];
        events.insert(late, Event::Stray);
        let claimed = 1 + events.iter().position(|event| *event == Event::Claim).unwrap();
        let made = 1 + events.iter().position(|event| *event == Event::Made).unwrap();
        let [dumped, looked, carried] = times[..] else { unreachable!() };
        prop_assume!(looked >= claimed || carried < made);

        let mut world = before();
        let (mut dump, mut steps) = (Tables::default(), Vec::new());
        for now in 0..=events.len() {
            if now == dumped {
                dump = world.kernel.clone();
            }
            if now == looked {
                steps = plan(&desired(&world.view, &facts()).unwrap(), &dump);
            }
            if now == carried {
                for step in &steps {
 carry_out(&mut world.kernel, step);
 }
            }
            let Some(event) = events.get(now) else { break };
            happen(&mut world, *event);
            if passed && *event == Event::Stray && now < dumped {
                world.kernel = carried_out(&desired(&world.view, &facts()).unwrap(), &world.kernel);
            }
        }
        let found = world.kernel.routes.iter().find(|route| route.key == key()).unwrap();
        prop_assert_eq!(&found.target, &Target::Link(ifname(1)));
    }
}
