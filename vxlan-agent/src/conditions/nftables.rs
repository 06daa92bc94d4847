//! Pure: what `nft -j list` prints, read as chains for one packet.

use std::net::IpAddr;

use limpet_net_types::{Family, Prefix, Range};
use serde_json::Value;

use super::packet::{Chain, Chains, Packet, Rule, Truth, Verdict};

/// A base chain: where the kernel hands packets to a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BaseChain {
    /// `ip`, `ip6` or `inet`.
    pub(crate) family: String,
    pub(crate) table: String,
    pub(crate) name: String,
    /// `forward`, `input`, ...
    pub(crate) hook: String,
}

impl BaseChain {
    /// Whether packets of this family meet it.
    pub(crate) fn is_for(&self, family: Family) -> bool {
        match self.family.as_str() {
            "inet" => true,
            "ip" => family == Family::V4,
            "ip6" => family == Family::V6,
            _ => false,
        }
    }

    /// Whether it is one that `iptables` made: its rules say more to that program than to `nft`.
    pub(crate) fn is_of_iptables(&self) -> bool {
        let (table, chain) = (self.table.as_str(), self.name.as_str());
        self.family != "inet"
            && ["filter", "mangle", "raw", "security", "nat"].contains(&table)
            && ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].contains(&chain)
    }
}

/// The base chains of type `filter` in a listing of all chains; none if it is no listing.
pub(crate) fn base_chains(listing: &str) -> Option<Vec<BaseChain>> {
    let text = |value: &Value| Some(value.as_str()?.to_owned());
    let chains = objects(listing)?.into_iter().filter_map(|object| {
        let chain = object.get("chain")?;
        let kind = chain.get("type").and_then(Value::as_str);
        kind.filter(|kind| *kind == "filter")?;
        Some(BaseChain {
            family: text(chain.get("family")?)?,
            table: text(chain.get("table")?)?,
            name: text(chain.get("name")?)?,
            hook: text(chain.get("hook")?)?,
        })
    });
    Some(chains.collect())
}

/// The chains of the listing of one table, as they are for `packet`; none if it is no listing.
pub(crate) fn chains(listing: &str, packet: &Packet) -> Option<Chains> {
    let mut chains = Chains::new();
    for object in objects(listing)? {
        if let Some(chain) = object.get("chain") {
            let name = chain.get("name")?.as_str()?.to_owned();
            let drops = chain.get("policy").and_then(Value::as_str) == Some("drop");
            chains.insert(name, Chain { drops, rules: Vec::new() });
        }
        if let Some(rule) = object.get("rule") {
            let of = rule.get("chain")?.as_str()?.to_owned();
            let expressions = rule.get("expr").and_then(Value::as_array).cloned();
            let rules = rules(&expressions.unwrap_or_default(), packet);
            chains.entry(of).or_default().rules.extend(rules);
        }
    }
    Some(chains)
}

fn objects(listing: &str) -> Option<Vec<Value>> {
    let listing: Value = serde_json::from_str(listing).ok()?;
    listing.get("nftables")?.as_array().cloned()
}

/// One rule, or, of one with a verdict map, one for each of its elements.
fn rules(expressions: &[Value], packet: &Packet) -> Vec<Rule> {
    let mut matches = Truth::Yes;
    let mut rules = Vec::new();
    for expression in expressions {
        let Some((word, value)) = expression.as_object().and_then(|all| all.iter().next()) else {
            matches = matches.and(Truth::Maybe);
            continue;
        };
        let text = || Value::from(expressions.to_vec()).to_string();
        match word.as_str() {
            "match" => matches = matches.and(matched(value, packet)),
            // Rates, counts of connections, modules of iptables.
            "limit" | "ct count" | "xt" | "quota" => matches = matches.and(Truth::Maybe),
            "vmap" => rules.extend(mapped(value, packet).into_iter().map(|(so, verdict)| Rule {
                matches: matches.and(so),
                verdict,
                text: text(),
            })),
            word => {
                if let Some(verdict) = verdict(word, value) {
                    rules.push(Rule { matches, verdict, text: text() });
                }
            }
        }
    }
    rules
}

fn verdict(word: &str, value: &Value) -> Option<Verdict> {
    let target = || value.get("target").and_then(Value::as_str).map(str::to_owned);
    match word {
        "accept" => Some(Verdict::Accept),
        "drop" | "reject" => Some(Verdict::Drop),
        "return" => Some(Verdict::Return),
        "jump" => target().map(Verdict::Jump),
        "goto" => target().map(Verdict::Goto),
        "queue" | "tproxy" | "synproxy" => Some(Verdict::Unknown),
        // Counters, logs, marks: the packet goes on.
        _ => None,
    }
}

/// The elements of a verdict map.
fn mapped(map: &Value, packet: &Packet) -> Vec<(Truth, Verdict)> {
    let elements = map.get("data").and_then(|data| data.get("set")).and_then(Value::as_array);
    let (Some(key), Some(elements)) = (map.get("key"), elements) else {
        // A named one: what it holds stands elsewhere.
        return vec![(Truth::Maybe, Verdict::Unknown)];
    };
    let elements = elements.iter().map(|element| {
        let (value, verdict_of) = (element.get(0), element.get(1).and_then(Value::as_object));
        let so = value.map_or(Truth::Maybe, |value| equals(key, value, packet));
        let verdict = verdict_of
            .and_then(|verdict| verdict.iter().next())
            .and_then(|(word, value)| verdict(word, value));
        (so, verdict.unwrap_or(Verdict::Unknown))
    });
    elements.collect()
}

fn matched(value: &Value, packet: &Packet) -> Truth {
    let (Some(left), Some(right)) = (value.get("left"), value.get("right")) else {
        return Truth::Maybe;
    };
    match value.get("op").and_then(Value::as_str) {
        Some("==" | "in") => equals(left, right, packet),
        Some("!=") => equals(left, right, packet).not(),
        _ => Truth::Maybe,
    }
}

fn equals(left: &Value, right: &Value, packet: &Packet) -> Truth {
    if let Some(elements) = right.get("set").and_then(Value::as_array).or(right.as_array()) {
        return elements.iter().fold(Truth::No, |so, one| so.or(equals(left, one, packet)));
    }
    if let Some(element) = right.get("elem").and_then(|element| element.get("val")) {
        return equals(left, element, packet);
    }
    // A named set: what it holds stands elsewhere.
    if right.as_str().is_some_and(|name| name.starts_with('@')) {
        return Truth::Maybe;
    }
    if let Some(meta) = left.get("meta").and_then(|meta| meta.get("key")).and_then(Value::as_str) {
        return of_meta(meta, right, packet);
    }
    if let Some(masked) = left.get("&").and_then(Value::as_array) {
        return of_masked(masked, right, packet);
    }
    if let Some(payload) = left.get("payload") {
        let of = |key: &str| payload.get(key).and_then(Value::as_str).unwrap_or_default();
        return of_payload((of("protocol"), of("field")), right, packet);
    }
    match left.get("ct").and_then(|ct| ct.get("key")).and_then(Value::as_str) {
        // A connection begins with a new packet: what lets only the others through lets none through.
        Some("state") => right
            .as_str()
            .map_or(Truth::Maybe, |state| ["new", "untracked"].contains(&state).into()),
        // No program translates the addresses of limpet's packets.
        Some("status") => right.as_str().map_or(Truth::Maybe, |_| Truth::No),
        _ => Truth::Maybe,
    }
}

fn of_meta(key: &str, right: &Value, packet: &Packet) -> Truth {
    let to = packet.to.as_ref();
    match key {
        "iif" | "iifname" => is_named(right, &packet.from.name),
        "oif" | "oifname" => to.map_or(Truth::No, |to| is_named(right, &to.name)),
        "iifgroup" => is_number(right, u64::from(packet.from.group)),
        "oifgroup" => to.map_or(Truth::No, |to| is_number(right, u64::from(to.group))),
        "nfproto" => match right.as_str() {
            Some("ipv4") => (packet.family == Family::V4).into(),
            Some("ipv6") => (packet.family == Family::V6).into(),
            _ => Truth::Maybe,
        },
        "protocol" => match right.as_str() {
            Some("ip") => (packet.family == Family::V4).into(),
            Some("ip6") => (packet.family == Family::V6).into(),
            _ => Truth::Maybe,
        },
        "l4proto" => match (right.as_str(), packet.port) {
            (Some(protocol), Some(_)) => (protocol == "udp").into(),
            _ => Truth::Maybe,
        },
        // Marks of other programs are not on limpet's packets.
        "mark" => is_number(right, 0),
        _ => Truth::Maybe,
    }
}

fn of_masked(masked: &[Value], right: &Value, packet: &Packet) -> Truth {
    let [left, mask] = masked else { return Truth::Maybe };
    let key = left.get("meta").and_then(|meta| meta.get("key")).and_then(Value::as_str);
    let to = packet.to.as_ref();
    let value = match key {
        Some("iifgroup") => packet.from.group,
        Some("oifgroup") => match to {
            Some(to) => to.group,
            None => return Truth::No,
        },
        Some("mark") => 0,
        _ => return Truth::Maybe,
    };
    match mask.as_u64() {
        Some(mask) => is_number(right, u64::from(value) & mask),
        None => Truth::Maybe,
    }
}

fn of_payload((protocol, field): (&str, &str), right: &Value, packet: &Packet) -> Truth {
    let of_family = match protocol {
        "ip" => packet.family == Family::V4,
        "ip6" => packet.family == Family::V6,
        "udp" | "tcp" | "th" => {
            return match (protocol, field, packet.port) {
                ("tcp", _, Some(_)) => Truth::No,
                (_, "dport", Some(port)) => is_number(right, u64::from(port)),
                _ => Truth::Maybe,
            };
        }
        "icmp" | "icmpv6" if packet.port.is_some() => return Truth::No,
        _ => return Truth::Maybe,
    };
    if !of_family {
        return Truth::No;
    }
    let ranges = match field {
        "saddr" => &packet.sources,
        "daddr" => &packet.destinations,
        "protocol" | "nexthdr" => {
            return of_meta("l4proto", right, packet);
        }
        _ => return Truth::Maybe,
    };
    range_of(right, packet.family).map_or(Truth::Maybe, |among| Packet::address_in(ranges, among))
}

/// The addresses that a value stands for: one, a prefix or a range.
fn range_of(value: &Value, family: Family) -> Option<Range> {
    let address = |value: &Value| {
        let address: IpAddr = value.as_str()?.parse().ok()?;
        Some(address).filter(|address| Family::of(*address) == family)
    };
    if let Some(prefix) = value.get("prefix") {
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        return Some(Prefix::containing(address(prefix.get("addr")?)?, length).into());
    }
    if let Some(range) = value.get("range") {
        return Range::between(address(range.get(0)?)?, address(range.get(1)?)?);
    }
    address(value).and_then(|address| Range::between(address, address))
}

fn is_named(pattern: &Value, name: &str) -> Truth {
    let Some(pattern) = pattern.as_str() else { return Truth::Maybe };
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning).into(),
        None => (pattern == name).into(),
    }
}

fn is_number(pattern: &Value, value: u64) -> Truth {
    if let Some(range) = pattern.get("range") {
        let end = |n: usize| range.get(n).and_then(Value::as_u64);
        return match (end(0), end(1)) {
            (Some(first), Some(last)) => (first <= value && value <= last).into(),
            _ => Truth::Maybe,
        };
    }
    match pattern.as_u64() {
        Some(number) => (number == value).into(),
        // The group 0 and the port of a service have names.
        None if pattern.as_str() == Some("default") => (value == 0).into(),
        None => Truth::Maybe,
    }
}

#[cfg(test)]
#[path = "nftables_tests.rs"]
mod tests;
