//! Pure: the policy rules: which table packets are looked up in, by their mark, their source, or by being the host's.
//!
//! The kernel asks one rule after the other, for every packet. So where there are many they are dealt into *bins*, and
//! a rule `goto` leads into the bin: what is asked grows with the root of their number. A rule with a table always has
//! its own condition too. A `goto` saves time and decides nothing, so that rules can come and go one by one.

use std::collections::{BTreeMap, BTreeSet};

use limpet_net_types::{Family, Prefix};
use limpet_rtnl::{RuleAction, Selector};

use crate::layout::{
    PREFERENCE_CHOICE, PREFERENCE_HOSTS, PREFERENCE_OVERLAY, PREFERENCE_OWN, Rule, TABLE_CHOICE,
    TABLE_OVERLAY,
};
use crate::mark::MarkMask;

/// How many sources are asked one after the other.
const MOST_FLAT: usize = 16;

/// How many bins there are at most.
const MOST_BINS: usize = 22;

/// The preferences at which bins of sources begin: in use is one of the two, so that the next arrangement is there
/// before the last one goes.
const BINS: [u32; 2] = [PREFERENCE_HOSTS + 1, PREFERENCE_HOSTS + 50];

/// How many preferences bins of sources take.
const PLACE: u32 = 49;

/// How many of the mark's highest bits say the bin.
const BIN_BITS: usize = 4;

/// What becomes of packets by their source.
pub(crate) type Sources = BTreeMap<Prefix, RuleAction>;

/// The rule for all packets that nothing else is for.
pub(crate) fn overlay_rule(family: Family) -> Rule {
    let (preference, selector) = (PREFERENCE_OVERLAY, Selector::All);
    Rule { family, preference, selector, action: RuleAction::Lookup(TABLE_OVERLAY) }
}

/// The rules for the packets of networks with address spaces of their own, by their marks, and for the host's own
/// packets to them. None without such networks.
pub(crate) fn mark_rules(mask: MarkMask, tables: &BTreeMap<u32, u32>) -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    let high = mask.highest(BIN_BITS);
    let bins: BTreeSet<u32> = tables.keys().map(|mark| mark & high).collect();
    for family in [Family::V4, Family::V6] {
        if tables.is_empty() {
            break;
        }
        let mut add = |preference, (mark, mask), action| {
            let selector = Selector::Marked { mark, mask };
            rules.insert(Rule { family, preference, selector, action });
        };
        // Most packets have no mark.
        add(PREFERENCE_OWN, (0, mask.value()), RuleAction::GoTo(PREFERENCE_CHOICE));
        for (bin, first) in bins.iter().zip((PREFERENCE_OWN + 2..).step_by(2)) {
            add(PREFERENCE_OWN + 1, (*bin, high), RuleAction::GoTo(first));
            for (mark, table) in tables.iter().filter(|(mark, _)| *mark & high == *bin) {
                add(first, (*mark, mask.value()), RuleAction::Lookup(*table));
                // What is not in its table is nowhere: the rules below are the shared address space's.
                add(first + 1, (*mark, mask.value()), RuleAction::Unreachable);
            }
        }
        let (selector, action) = (Selector::OfHost, RuleAction::Lookup(TABLE_CHOICE));
        rules.insert(Rule { family, preference: PREFERENCE_CHOICE, selector, action });
    }
    rules
}

/// The rules for sources, given those that there are: an arrangement that is in place stays.
pub(crate) fn source_rules(sources: &Sources, found: &BTreeSet<Rule>) -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    for family in [Family::V4, Family::V6] {
        let of_family: Vec<_> = sources
            .iter()
            .filter(|(source, _)| source.family() == family)
            .map(|(source, action)| (*source, *action))
            .collect();
        if of_family.len() <= MOST_FLAT {
            let flat = of_family.iter().map(|source| rule(family, PREFERENCE_HOSTS, *source));
            rules.extend(flat);
            continue;
        }
        let arranged = BINS.map(|first| (first, arrange(family, first, &of_family)));
        let of_place = |first: u32| {
            let place = first..first + PLACE;
            found.iter().filter(move |r| r.family == family && place.contains(&r.preference))
        };
        // Never among the rules of another arrangement; else where most is there already, the first place of equals.
        let fits = |(first, arranged): &&(u32, BTreeSet<Rule>)| {
            of_place(*first).all(|rule| arranged.contains(rule))
        };
        let fitting = arranged.iter().rev().filter(fits);
        let best = fitting.max_by_key(|(first, _)| of_place(*first).count()).or(arranged.first());
        rules.extend(best.into_iter().flat_map(|(_, arranged)| arranged));
    }
    rules
}

/// Deals sources into bins, the first of which begins at this preference.
fn arrange(family: Family, first: u32, sources: &[(Prefix, RuleAction)]) -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    let goto = |preference, from, to| {
        let (selector, action) = (Selector::From(from), RuleAction::GoTo(to));
        Rule { family, preference, selector, action }
    };
    for ((cover, members), at) in bins(sources).into_iter().zip((first + 2..).step_by(2)) {
        rules.insert(goto(first, cover, at));
        rules.extend(members.iter().map(|member| rule(family, at, *member)));
        rules.insert(goto(at + 1, cover, PREFERENCE_OVERLAY));
    }
    // Past this arrangement, to the other one where it is still there.
    let next = if first == BINS[0] { BINS[1] } else { PREFERENCE_OVERLAY };
    let past = |to| {
        let (selector, action) = (Selector::All, RuleAction::GoTo(to));
        Rule { family, preference: first + 1, selector, action }
    };
    rules.insert(past(next));
    rules.insert(past(PREFERENCE_OVERLAY));
    rules
}

fn rule(family: Family, preference: u32, (from, action): (Prefix, RuleAction)) -> Rule {
    Rule { family, preference, selector: Selector::From(from), action }
}

/// A bin: the prefix that covers all of its sources and none of another bin's, and they.
type Bin = (Prefix, Vec<(Prefix, RuleAction)>);

/// Deals sources into bins: the fullest is parted until there are enough.
fn bins(sources: &[(Prefix, RuleAction)]) -> Vec<Bin> {
    let mut bins: Vec<Bin> = bin(sources.to_vec()).into_iter().collect();
    while bins.len() < MOST_BINS {
        let fullest = bins.iter().enumerate().max_by_key(|(_, (_, members))| members.len());
        let Some((at, _)) = fullest.filter(|(_, (_, members))| members.len() > 1) else { break };
        let (cover, members) = bins.swap_remove(at);
        // They differ in the first bit after those that they have in common.
        let half = Prefix::containing(cover.address(), cover.length() + 1).range();
        let (lower, upper): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|(source, _)| half.covers(source.range()));
        let parted = !lower.is_empty() && !upper.is_empty();
        bins.extend([lower, upper].into_iter().filter_map(bin));
        if !parted {
            break;
        }
    }
    bins.sort_unstable();
    bins
}

/// The bin of some sources, which do not overlap; none of none.
fn bin(members: Vec<(Prefix, RuleAction)>) -> Option<Bin> {
    let cover = members.iter().map(|(source, _)| *source).reduce(|mut cover, source| {
        while !cover.range().covers(source.range()) {
            cover = Prefix::containing(cover.address(), cover.length() - 1);
        }
        cover
    })?;
    Some((cover, members))
}

#[cfg(test)]
mod tests;
