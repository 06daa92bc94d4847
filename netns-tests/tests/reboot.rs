//! A host that reboots while no controller answers has its network back from its own disk.

use std::net::IpAddr;
use std::time::Duration;

use netns_tests::{Agent, Datacentre, Host, Pod, reaches, wait_until};

/// The address of the machine that reboots, of the family of `like`.
fn own(like: IpAddr) -> IpAddr {
    let address = if like.is_ipv4() { "192.0.2.60" } else { "2001:db8::60" };
    address.parse().unwrap_or(like)
}

fn plug(dc: &Datacentre, machine: &Host) {
    dc.underlay.join(machine, "eth0", &["192.0.2.60/24", "2001:db8::60/64"]);
}

/// Whether both reach each other over both families, and see each other's real addresses.
fn both_ways(machine: &Host, pod: &Pod) -> bool {
    pod.addresses().into_iter().all(|address| {
        let (inside, outside) = (pod.container.netns(), machine.netns());
        reaches(&outside, own(address), &inside, address)
            && reaches(&inside, address, &outside, own(address))
    })
}

fn status(agent: &Agent) -> String {
    let output = agent.command().arg("status").output();
    output.map_or_else(|error| error.to_string(), |it| String::from_utf8_lossy(&it.stdout).into())
}

#[test]
fn a_host_that_reboots_while_no_controller_answers_reaches_containers_and_is_reached() {
    let mut dc = Datacentre::small();
    let db = dc.b.add("shop", "db-0");
    let machine = Host::machine("metal-2");
    plug(&dc, &machine);
    let mut agent = Agent::new(&machine, &dc.controller.url(), "--role member").started();
    wait_until(Duration::from_secs(20), "it has joined", || both_ways(&machine, &db));
    wait_until(Duration::from_secs(20), "what it was told is on its disk", || {
        machine.try_sh("test -s /var/lib/limpet-agent/snapshot").is_ok()
    });
    dc.controller.kill();
    agent.died_with_its_host();
    machine.reboot();
    plug(&dc, &machine);
    assert!(machine.json("ip -j link show type vxlan").is_empty(), "nothing is left in the kernel");
    assert!(!both_ways(&machine, &db));

    agent.start_alone();
    wait_until(Duration::from_secs(20), "it is in the overlay again", || both_ways(&machine, &db));
    let said = status(&agent);
    assert!(said.contains("joined       no") && said.contains("by its snapshot from"), "{said}");
    let refused = agent.status("pods");
    assert_eq!(refused.expect_error("STATUS"), 50, "{refused:?}");
    assert!(refused.stdout.to_string().contains("goes by the snapshot"), "{refused:?}");

    dc.controller.resume();
    agent.await_joined();
    wait_until(Duration::from_secs(20), "the controller counts alone", || {
        !status(&agent).contains("snapshot")
    });
    assert!(both_ways(&machine, &db));
}
