//! Pure: the rules on a model of the kernel's: what is asked, and that it stays right while they change.

use limpet_net_types::NetworkIndex;
use proptest::prelude::*;

use super::*;
use crate::layout::{hosts_table, own_table};
use crate::mark::DEFAULT_MASK;

/// A packet, as far as rules look at it.
#[derive(Clone, Copy)]
struct Packet {
    source: std::net::IpAddr,
    mark: u32,
    of_host: bool,
}

/// Rules in the kernel's order: those of one preference in that in which they were set.
type Kernel = Vec<Rule>;

fn set(kernel: &mut Kernel, rule: Rule) {
    let at = kernel.iter().position(|other| other.preference > rule.preference);
    kernel.insert(at.unwrap_or(kernel.len()), rule);
}

/// What the rules lead to in turn, and how many are asked.
fn ask(kernel: &Kernel, packet: Packet) -> (Vec<RuleAction>, usize) {
    let (mut led, mut asked, mut at) = (Vec::new(), 0, 0);
    let family = Family::of(packet.source);
    while let Some(rule) = kernel.get(at) {
        at += 1;
        if rule.family != family {
            continue;
        }
        asked += 1;
        let matches = match rule.selector {
            Selector::All => true,
            Selector::From(from) => from.contains(packet.source),
            Selector::Marked { mark, mask } => packet.mark & mask == mark,
            Selector::OfHost => packet.of_host,
        };
        match rule.action {
            _ if !matches => {}
            RuleAction::GoTo(to) => {
                let target = kernel.iter().position(|r| r.family == family && r.preference == to);
                // The kernel passes over one that leads nowhere.
                at = target.unwrap_or(at);
            }
            action => led.push(action),
        }
        if led.last() == Some(&RuleAction::Unreachable) {
            break;
        }
    }
    (led, asked)
}

fn index(n: u16) -> NetworkIndex {
    n.try_into().unwrap()
}

/// The source of network `n`, where they are spread unevenly.
fn source(n: u16) -> Prefix {
    let text = match n % 3 {
        0 => format!("10.{}.{}.0/24", n / 256, n % 256),
        1 => format!("172.16.{}.{}/32", n / 256, n % 256),
        _ => format!("fd00:{n:x}::/64"),
    };
    text.parse().unwrap()
}

fn sources(numbers: &BTreeSet<u16>) -> Sources {
    let of = |n: u16| match n % 7 {
        0 => RuleAction::Unreachable,
        _ => RuleAction::Lookup(hosts_table(index(n))),
    };
    numbers.iter().map(|n| (source(*n), of(*n))).collect()
}

fn all_rules(sources: &Sources, found: &BTreeSet<Rule>) -> BTreeSet<Rule> {
    let mut rules = source_rules(sources, found);
    rules.extend([Family::V4, Family::V6].map(overlay_rule));
    rules
}

fn packet(n: u16) -> Packet {
    Packet { source: source(n).address(), mark: 0, of_host: false }
}

fn wanted(sources: &Sources, n: u16) -> Vec<RuleAction> {
    let overlay = RuleAction::Lookup(crate::layout::TABLE_OVERLAY);
    match sources.get(&source(n)) {
        Some(RuleAction::Unreachable) => vec![RuleAction::Unreachable],
        Some(action) => vec![*action, overlay],
        None => vec![overlay],
    }
}

fn numbers() -> impl Strategy<Value = BTreeSet<u16>> {
    let few = prop::collection::btree_set(1..80_u16, 0..20);
    let many = prop::collection::btree_set(1..600_u16, 100..300);
    prop_oneof![few, many]
}

/// The steps from one set of rules to another, in the order of a plan: what is new first, what goes backwards.
fn steps(from: &BTreeSet<Rule>, to: &BTreeSet<Rule>) -> Vec<(bool, Rule)> {
    let new = to.difference(from).map(|rule| (true, *rule));
    let mut gone: Vec<_> = from.difference(to).map(|rule| (false, *rule)).collect();
    gone.reverse();
    new.chain(gone).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn each_source_is_led_to_its_table_and_then_to_the_overlay(of in numbers()) {
        let sources = sources(&of);
        let mut kernel = Kernel::new();
        for rule in all_rules(&sources, &BTreeSet::new()) {
            set(&mut kernel, rule);
        }
        for n in 1..600 {
            let (led, asked) = ask(&kernel, packet(n));
            prop_assert_eq!(led, wanted(&sources, n));
            prop_assert!(asked <= 60, "{} rules are asked", asked);
        }
    }

    #[test]
    fn whoever_is_led_right_before_and_after_is_led_right_all_the_time(
        before in numbers(),
        after in numbers(),
        last in numbers(),
    ) {
        let mut kernel = Kernel::new();
        let mut now = BTreeSet::new();
        let mut earlier = Sources::new();
        for of in [before, after, last] {
            let sources = sources(&of);
            let wanted_rules = all_rules(&sources, &now);
            let has = |of: &Sources, n: u16| of.contains_key(&source(n));
            let same = (1..600).filter(|n| !now.is_empty() && has(&earlier, *n) == has(&sources, *n));
            let same: Vec<u16> = same.step_by(7).collect();
            for (new, rule) in steps(&now, &wanted_rules) {
                if new {
                    set(&mut kernel, rule);
                } else {
                    kernel.retain(|other| *other != rule);
                }
                for n in &same {
                    let (led, _) = ask(&kernel, packet(*n));
                    let mut led = led;
                    // For a moment two arrangements say the same.
                    led.dedup();
                    prop_assert_eq!(&led, &wanted(&sources, *n), "{} after {} {}", n, new, rule);
                }
            }
            prop_assert_eq!(&all_rules(&sources, &wanted_rules), &wanted_rules, "it stays");
            (now, earlier) = (wanted_rules, sources);
        }
    }

    #[test]
    fn marks_lead_to_their_own_table_and_nowhere_else(of in prop::collection::btree_set(1..=255_u16, 1..=255)) {
        let mask: MarkMask = DEFAULT_MASK.parse().unwrap();
        let tables: BTreeMap<u32, u32> =
            of.iter().map(|n| (mask.mark_of(index(*n)).unwrap(), own_table(index(*n)))).collect();
        let mut kernel = Kernel::new();
        let rules = mark_rules(mask, &tables).into_iter().chain([overlay_rule(Family::V4)]);
        for rule in rules {
            set(&mut kernel, rule);
        }
        let packet = |mark, of_host| Packet { source: "10.0.0.1".parse().unwrap(), mark, of_host };
        for n in &of {
            // Others' bits of the mark say nothing.
            let mark = mask.mark_of(index(*n)).unwrap() | 0x4000;
            let (led, asked) = ask(&kernel, packet(mark, false));
            prop_assert_eq!(led, vec![RuleAction::Lookup(own_table(index(*n))), RuleAction::Unreachable]);
            prop_assert!(asked <= 51, "{} rules are asked", asked);
        }
        let overlay = RuleAction::Lookup(crate::layout::TABLE_OVERLAY);
        let (led, asked) = ask(&kernel, packet(0x4000, false));
        prop_assert_eq!((led, asked), (vec![overlay], 3));
        let (led, _) = ask(&kernel, packet(0x4000, true));
        prop_assert_eq!(led, vec![RuleAction::Lookup(TABLE_CHOICE), overlay]);
    }
}
