//! Edge: shaping on the real kernel, seen by `tc`.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise; clippy knows only test functions for tests"
)]

use std::process::Command;

use limpet_rtnl::{Detour, LinkChange, Netns, NewIfb, Request, Socket, Tbf};
use serde_json::Value;

/// What a program of iproute2 says in a namespace, as JSON.
fn json(netns: &str, command: &str) -> Value {
    let line = format!("ip netns exec {netns} {command}");
    let output = Command::new("sh").args(["-ec", &line]).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn ifb(socket: &mut Socket, name: &str) -> u32 {
    let new = NewIfb { name: name.to_owned(), mtu: 1450 };
    socket.request(&Request::NewIfb(new)).await.unwrap();
    let index = socket.link_named(name).await.unwrap().unwrap().index;
    let up = LinkChange { up: Some(true), ..LinkChange::of(index) };
    socket.request(&Request::ChangeLink(up)).await.unwrap();
    index
}

#[tokio::test]
async fn a_bucket_and_a_detour_are_found_as_they_were_set() {
    let netns = format!("shape-{}", std::process::id());
    Command::new("ip").args(["netns", "add", &netns]).status().unwrap();
    let mut socket = Socket::open_in(&Netns::open(format!("/run/netns/{netns}")).unwrap()).unwrap();
    let (one, two) = (ifb(&mut socket, "one").await, ifb(&mut socket, "two").await);
    assert_eq!(socket.tbfs().await.unwrap(), []);
    assert_eq!(socket.detours(one).await.unwrap(), []);

    let slow = Tbf { device: one, rate: 1_000_000, burst: 20_000, limit: 60_000 };
    // 80 Gbit/s: more than 32 bits of bytes; and a bucket that takes 14 minutes to fill.
    let fast = Tbf { device: two, rate: 10_000_000_000, burst: 1 << 28, limit: 1 << 30 };
    let full = Tbf { device: two, rate: 5_000_000, burst: u32::MAX, limit: 1 << 20 };
    for tbf in [slow, fast, full] {
        socket.request(&Request::SetTbf(tbf)).await.unwrap();
        let found = socket.tbfs().await.unwrap();
        assert!(found.iter().any(|found| tbf.is(found)), "{tbf:?} is not in {found:?}");
    }
    let seen = json(&netns, "tc -j qdisc show dev one");
    let options = &seen[0]["options"];
    assert_eq!((&seen[0]["kind"], &options["rate"]), (&"tbf".into(), &1_000_000.into()));
    // The kernel keeps it as a time.
    let burst = options["burst"].as_u64().unwrap();
    assert!(burst.abs_diff(20_000) < 20, "{seen}");

    let detour = Detour { from: two, through: one };
    for request in [Request::NewIngress(detour), Request::AddDetour(detour)] {
        socket.request(&request).await.unwrap();
    }
    assert_eq!(socket.detours(two).await.unwrap(), [detour]);
    assert_eq!(socket.detours(one).await.unwrap(), []);
    let seen = json(&netns, "tc -j filter show dev two ingress");
    assert!(seen.to_string().contains("\"to_dev\":\"one\""), "{seen}");
    Command::new("ip").args(["netns", "del", &netns]).status().unwrap();
    drop(socket);
}
