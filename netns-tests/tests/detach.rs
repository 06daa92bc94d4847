//! DEL succeeds whatever is away, the interface goes at once, and the attachment ends when all are back.

use std::time::Duration;

use netns_tests::{Agent, Datacentre, Pod, wait_until};

fn attachments(dc: &Datacentre, pod: &Pod) -> usize {
    let rows = dc.controller.rows("attachment list");
    rows.iter().filter(|row| row.to_string().contains(pod.container.id())).count()
}

/// The container ends: DEL must succeed and take the interface away, and repeating it must succeed too.
fn detached(agent: &Agent, pod: &Pod) {
    let device = Agent::host_end(pod);
    let answer = agent.del(pod);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(
        pod.container.try_sh("ip link show eth0").is_err(),
        "the container's interface is gone"
    );
    let route = agent.host().json("ip -j route show table 7601");
    let target = pod.v4().to_string();
    assert!(!route.iter().any(|route| route["dst"] == target.as_str()), "its route is gone");
    // The runtime takes the namespace away and asks again.
    pod.container.delete();
    let answer = agent.del_again(pod);
    assert_eq!(answer.code, 0, "{answer:?}");
    wait_until(Duration::from_secs(5), "the host's end is gone", || !agent.has_device(&device));
}

fn ended(dc: &Datacentre, pod: &Pod) {
    wait_until(Duration::from_secs(20), "the attachment is ended", || attachments(dc, pod) == 0);
}

#[test]
fn del_ends_the_attachment_and_repeating_it_is_success() {
    let dc = Datacentre::small();
    let web = dc.a.add("shop", "web-0");
    assert_eq!(attachments(&dc, &web), 1);
    detached(&dc.a, &web);
    assert_eq!(attachments(&dc, &web), 0);
    // Also with the namespace gone, as a runtime does it after a crash.
    let again = dc.a.add("shop", "web-0");
    again.container.delete();
    assert_eq!(dc.a.del_again(&again).code, 0);
    assert_eq!(attachments(&dc, &again), 0);
}

#[test]
fn del_without_the_controller_is_made_good_when_it_is_back() {
    let mut dc = Datacentre::small();
    let web = dc.a.add("shop", "web-0");
    dc.controller.kill();
    detached(&dc.a, &web);
    dc.controller.resume();
    ended(&dc, &web);
    assert_eq!(
        dc.b.add("shop", "web-0").addresses(),
        web.addresses(),
        "its name keeps its addresses"
    );
}

#[test]
fn del_without_the_agent_is_made_good_when_it_is_back() {
    let mut dc = Datacentre::small();
    let web = dc.a.add("shop", "web-0");
    dc.a.kill();
    detached(&dc.a, &web);
    assert_eq!(attachments(&dc, &web), 1, "nobody could end it");
    dc.a.start();
    ended(&dc, &web);
}

#[test]
fn del_without_agent_and_controller_is_made_good_when_both_are_back() {
    let mut dc = Datacentre::small();
    let (web, stays) = (dc.a.add("shop", "web-0"), dc.a.add("shop", "web-1"));
    dc.controller.kill();
    dc.a.kill();
    detached(&dc.a, &web);
    dc.controller.resume();
    dc.a.start();
    ended(&dc, &web);
    assert_eq!(attachments(&dc, &stays), 1, "what is there stays");
    assert!(dc.a.host().pings(stays.v4(), 2));
}

#[test]
fn a_late_del_of_an_old_container_touches_nothing_of_the_new_one() {
    let dc = Datacentre::small();
    let old = dc.a.add("shop", "web-0");
    assert_eq!(dc.a.del(&old).code, 0);
    let new = dc.b.add("shop", "web-0");
    for _ in 0..2 {
        assert_eq!(dc.a.del(&old).code, 0);
        assert_eq!(dc.a.del_again(&old).code, 0);
        assert_eq!(dc.b.del_again(&old).code, 0);
    }
    assert_eq!(attachments(&dc, &new), 1);
    assert!(dc.a.host().pings(new.v4(), 5));
}
