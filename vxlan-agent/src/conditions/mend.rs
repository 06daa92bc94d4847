//! Pure: the two rules that let the overlay pass a chain FORWARD of iptables, and when they are to be there.
//!
//! They carry a comment of limpet's, by which they are known again: set where they are needed and asked for, taken away
//! where not. Nothing else of anybody's is touched.

use super::filters::{GROUPS, chain_for_rules, drops_forward};
use super::surroundings::{Iptables, Surroundings};

/// By what limpet's own rules are known.
const COMMENT: &str = "limpet-forward-policy";

/// The ends of a packet's way whose devices' groups are looked at.
const ENDS: [&str; 2] = ["--src-group", "--dst-group"];

/// The arguments for the tool of `listed`, one command after the other, that put limpet's rules where they belong.
pub(crate) fn commands(around: &Surroundings, listed: &Iptables) -> Vec<Vec<String>> {
    let (ours, others): (Vec<&str>, Vec<&str>) =
        listed.listing.lines().partition(|line| line.starts_with("-A ") && line.contains(COMMENT));
    let others = Iptables { listing: others.join("\n"), ..listed.clone() };
    let wanted = if around.filters.mended && drops_forward(around, &others) {
        let chain = chain_for_rules(&others.listing);
        ENDS.iter().map(|end| (chain, *end)).collect()
    } else {
        Vec::new()
    };
    let mut missing = wanted.clone();
    let mut commands = Vec::new();
    for rule in ours {
        let found = missing.iter().position(|(chain, end)| {
            rule.starts_with(&format!("-A {chain} ")) && rule.contains(end)
        });
        match found {
            Some(found) => drop(missing.remove(found)),
            None => commands.push(words("-D", rule)),
        }
    }
    // Before what is deleted, so that no packet falls between.
    let set = missing.into_iter().map(|(chain, end)| rule_words("-I", chain, end));
    set.chain(commands).collect()
}

fn rule_words(verb: &str, chain: &str, end: &str) -> Vec<String> {
    let rule =
        ["-m", "devgroup", end, GROUPS, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"];
    [verb, chain].into_iter().chain(rule).map(str::to_owned).collect()
}

/// A rule as it was listed, with another verb. None of limpet's has a blank within a word.
fn words(verb: &str, rule: &str) -> Vec<String> {
    let rest = rule.split_whitespace().skip(1).map(|word| word.trim_matches('"').to_owned());
    std::iter::once(verb.to_owned()).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use limpet_net_types::Family;

    use super::super::fixture::around;
    use super::*;

    fn commands_for(listing: &str, asked: bool) -> Vec<String> {
        let mut around = around();
        around.filters.mended = asked;
        let listing = format!("*filter\n{listing}COMMIT\n");
        let listed = Iptables { tool: "iptables-nft", family: Family::V4, listing };
        commands(&around, &listed).iter().map(|words| words.join(" ")).collect()
    }

    const DROP: &str = ":FORWARD DROP [0:0]\n";

    fn rule(verb: &str, chain: &str, end: &str) -> String {
        rule_words(verb, chain, end).join(" ")
    }

    fn both(verb: &str, chain: &str) -> Vec<String> {
        ENDS.iter().map(|end| rule(verb, chain, end)).collect()
    }

    #[test]
    fn they_are_set_once_where_packets_come_by() {
        assert_eq!(commands_for(DROP, true), both("-I", "FORWARD"));
        let docker = format!("{DROP}:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n");
        assert_eq!(commands_for(&docker, true), both("-I", "DOCKER-USER"));
        let unused = format!("{DROP}:DOCKER-USER - [0:0]\n");
        assert_eq!(commands_for(&unused, true), both("-I", "FORWARD"));
        let set = both("-A", "FORWARD").join("\n") + "\n";
        assert_eq!(commands_for(&format!("{DROP}{set}"), true), [""; 0]);
        let half = rule("-A", "FORWARD", ENDS[0]) + "\n";
        assert_eq!(commands_for(&format!("{DROP}{half}"), true), [rule("-I", "FORWARD", ENDS[1])]);
    }

    #[test]
    fn they_go_where_they_are_not_asked_for_or_needed_or_stand_twice() {
        let set = both("-A", "FORWARD").join("\n") + "\n";
        assert_eq!(commands_for(&format!("{DROP}{set}"), false), both("-D", "FORWARD"));
        let open = ":FORWARD ACCEPT [0:0]\n";
        assert_eq!(commands_for(&format!("{open}{set}"), true), both("-D", "FORWARD"));
        assert_eq!(commands_for(&format!("{DROP}{set}{set}"), true), both("-D", "FORWARD"));
        let docker = format!("{DROP}:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n{set}");
        let moved = [both("-I", "DOCKER-USER"), both("-D", "FORWARD")].concat();
        assert_eq!(commands_for(&docker, true), moved);
    }

    #[test]
    fn rules_of_others_stay() {
        let theirs = "-A FORWARD -m comment --comment limpet -j ACCEPT\n-A FORWARD -j DROP\n";
        assert_eq!(commands_for(&format!(":FORWARD ACCEPT [0:0]\n{theirs}"), false), [""; 0]);
    }
}
