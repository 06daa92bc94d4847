//! Pure: what `iptables-save` prints, read as chains for one packet, whichever backend printed it.

use std::net::IpAddr;

use limpet_net_types::{Family, Prefix, Range};

use super::packet::{Chain, Chains, Packet, Rule, Truth, Verdict};

/// The tables of a listing that have a chain of this name, each with its chains as they are for `packet`.
pub(crate) fn tables(listing: &str, chain: &str, packet: &Packet) -> Vec<(String, Chains)> {
    let mut tables: Vec<(String, Chains)> = Vec::new();
    for line in listing.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push((name.to_owned(), Chains::new()));
            continue;
        }
        let Some((name, chains)) = tables.last_mut() else { continue };
        // It drops nothing, and has most of kube-proxy's rules.
        if name == "nat" {
            continue;
        }
        if let Some(head) = line.strip_prefix(':') {
            let mut words = head.split_whitespace();
            let (name, policy) = (words.next().unwrap_or_default(), words.next());
            let drops = policy == Some("DROP");
            chains.insert(name.to_owned(), Chain { drops, rules: Vec::new() });
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (name, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            let rules = &mut chains.entry(name.to_owned()).or_default().rules;
            rules.push(read(rule, line, packet));
        }
    }
    tables.retain(|(_, chains)| chains.contains_key(chain));
    tables
}

/// A rule's arguments, quoted ones as one.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    let mut begun = false;
    for c in rule.chars() {
        match c {
            _ if escaped => (word.push(c), escaped = false).0,
            '\\' if quoted => escaped = true,
            '"' => (quoted, begun) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => word.push(c),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
}

fn read(rule: &str, line: &str, packet: &Packet) -> Rule {
    let words = words(rule);
    let mut matches = Truth::Yes;
    let mut verdict = Verdict::Continue;
    let mut negated = false;
    let mut rest = words.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        let mut values = Vec::new();
        while let Some(value) = rest.next_if(|next| !next.starts_with('-') && *next != "!") {
            values.push(value);
        }
        let value = values.first().copied().unwrap_or_default();
        match word {
            "-j" => verdict = target(value),
            "-g" => verdict = Verdict::Goto(value.to_owned()),
            // The module of the words behind it; and what a target takes, once it is named.
            "-m" | "--comment" => {}
            _ if verdict != Verdict::Continue => {}
            _ => {
                let so = matched(word, value, packet);
                matches = matches.and(if negated { so.not() } else { so });
            }
        }
        negated = false;
    }
    Rule { matches, verdict, text: line.to_owned() }
}

fn target(name: &str) -> Verdict {
    match name {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" => Verdict::Drop,
        "RETURN" => Verdict::Return,
        "QUEUE" | "NFQUEUE" => Verdict::Unknown,
        // What they do to a packet does not end its way.
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" | "CT" | "NOTRACK" | "TRACE" | "SET"
        | "CLASSIFY" | "CHECKSUM" | "TTL" | "HL" | "DSCP" | "TOS" => Verdict::Continue,
        chain => Verdict::Jump(chain.to_owned()),
    }
}

fn matched(word: &str, value: &str, packet: &Packet) -> Truth {
    let to = packet.to.as_ref();
    match word {
        "-i" | "--in-interface" => is_named(value, &packet.from.name),
        "-o" | "--out-interface" => to.map_or(Truth::No, |to| is_named(value, &to.name)),
        "--src-group" => is_masked(value, packet.from.group),
        "--dst-group" => to.map_or(Truth::No, |to| is_masked(value, to.group)),
        "-s" | "--source" => is_among(value, packet.family, &packet.sources),
        "-d" | "--destination" => is_among(value, packet.family, &packet.destinations),
        "-p" | "--protocol" => match (value, packet.port) {
            ("all" | "0", _) | ("udp" | "17", Some(_)) => Truth::Yes,
            (_, Some(_)) => Truth::No,
            (_, None) => Truth::Maybe,
        },
        "--dport" | "--dports" | "--destination-port" | "--ports" => match packet.port {
            Some(port) => value.split(',').fold(Truth::No, |so, ports| so.or(is_port(ports, port))),
            None => Truth::Maybe,
        },
        // A connection begins with a new packet: what lets only the others through lets none through.
        "--ctstate" | "--state" => {
            value.split(',').any(|state| state == "NEW" || state == "UNTRACKED").into()
        }
        "--dst-type" => (value == "LOCAL" && to.is_none()).into(),
        // Marks of other programs are not on limpet's packets.
        "--mark" => is_masked(value, 0),
        _ => Truth::Maybe,
    }
}

fn is_named(pattern: &str, name: &str) -> Truth {
    match pattern.strip_suffix('+') {
        Some(beginning) => name.starts_with(beginning).into(),
        None => (pattern == name).into(),
    }
}

fn is_masked(pattern: &str, value: u32) -> Truth {
    let (wanted, mask) = pattern.split_once('/').unwrap_or((pattern, "0xffffffff"));
    match (number(wanted), number(mask)) {
        (Some(wanted), Some(mask)) => (value & mask == wanted).into(),
        _ => Truth::Maybe,
    }
}

fn number(text: &str) -> Option<u32> {
    text.strip_prefix("0x")
        .map_or_else(|| text.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())
}

fn is_port(ports: &str, port: u16) -> Truth {
    let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => (first <= port && port <= last).into(),
        _ => Truth::Maybe,
    }
}

fn is_among(text: &str, family: Family, ranges: &[Range]) -> Truth {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let Ok(address) = address.parse::<IpAddr>() else { return Truth::Maybe };
    let Ok(length) = (if length.is_empty() { Ok(family.bits()) } else { length.parse() }) else {
        return Truth::Maybe;
    };
    if Family::of(address) != family || length > family.bits() {
        return Truth::Maybe;
    }
    Packet::address_in(ranges, Range::from(Prefix::containing(address, length)))
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Device, Fate, fate};
    use super::*;

    fn packet() -> Packet {
        let device = |name: &str| Device { name: name.to_owned(), group: 4097 };
        let pools = vec!["10.32.0.0/16".parse().unwrap()];
        Packet {
            family: Family::V4,
            from: device("limpet1"),
            to: Some(device("lc0123456789a")),
            sources: pools.clone(),
            destinations: pools,
            port: None,
        }
    }

    fn vxlan() -> Packet {
        let from = Device { name: "eth0".to_owned(), group: 0 };
        let sources = vec!["192.0.2.1..192.0.2.9".parse().unwrap()];
        Packet { from, to: None, sources, destinations: Vec::new(), port: Some(4789), ..packet() }
    }

    fn in_filter(rules: &str, chain: &str, packet: &Packet) -> Fate {
        let listing = format!("# by iptables\n*filter\n{rules}\nCOMMIT\n");
        let tables = tables(&listing, chain, packet);
        assert_eq!(tables.len(), 1, "{rules}");
        fate(&tables[0].1, chain)
    }

    #[test]
    fn what_translates_drops_nothing_and_is_not_read() {
        let table = |name: &str| format!("*{name}\n:INPUT ACCEPT [0:0]\n-A INPUT -j X\nCOMMIT\n");
        let listing = ["nat", "mangle", "filter"].map(table).concat();
        let names = tables(&listing, "INPUT", &vxlan()).into_iter().map(|(name, _)| name);
        assert_eq!(names.collect::<Vec<_>>(), ["mangle", "filter"]);
    }

    /// As Docker 24 leaves it, with a network of its own.
    const DOCKER: &str = "\
:INPUT ACCEPT [0:0]
:FORWARD DROP [4:336]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN";

    #[test]
    fn dockers_policy_drops_and_two_rules_of_the_operators_chain_let_pass() {
        let by = "the policy of the chain FORWARD".to_owned();
        let returns = "-A DOCKER-USER -j RETURN";
        let before = format!("{DOCKER}\n{returns}");
        assert_eq!(in_filter(&before, "FORWARD", &packet()), Fate::Dropped { by, certain: true });
        let accept = "-A DOCKER-USER -m devgroup --src-group 0x1000/0x1000 -m comment --comment \"limpet's: \\\"x\\\" -j DROP\" -j ACCEPT";
        let after = format!("{DOCKER}\n{accept}\n{returns}");
        assert_eq!(in_filter(&after, "FORWARD", &packet()), Fate::Passes);
        let to = "-A DOCKER-USER -m devgroup --dst-group 0x1000/0x1000 -j ACCEPT";
        assert_eq!(in_filter(&format!("{DOCKER}\n{to}"), "FORWARD", &packet()), Fate::Passes);
    }

    #[test]
    fn rules_for_others_do_not_count_and_rules_for_the_overlay_do() {
        let policy = ":FORWARD DROP [0:0]\n";
        for (rule, passes) in [
            ("-A FORWARD -s 10.0.0.0/8 -j ACCEPT", true),
            ("-A FORWARD -s 10.0.0.0/8 -d 172.16.0.0/12 -j ACCEPT", false),
            ("-A FORWARD ! -d 172.16.0.0/12 -j ACCEPT", true),
            ("-A FORWARD -i limpet+ -j ACCEPT", true),
            ("-A FORWARD -o lc+ -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT", true),
            ("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", false),
            ("-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT", false),
            ("-A FORWARD -m addrtype --dst-type LOCAL -j ACCEPT", false),
        ] {
            let fate = in_filter(&format!("{policy}{rule}"), "FORWARD", &packet());
            assert_eq!(fate == Fate::Passes, passes, "{rule}");
        }
        let some = in_filter(&format!("{policy}-A FORWARD -p tcp -j ACCEPT"), "FORWARD", &packet());
        assert!(matches!(some, Fate::Dropped { certain: false, .. }), "{some:?}");
    }

    #[test]
    fn a_closed_host_takes_vxlan_in_only_by_its_port() {
        let policy = ":INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n";
        let closed = in_filter(policy, "INPUT", &vxlan());
        assert!(matches!(closed, Fate::Dropped { certain: true, .. }), "{closed:?}");
        for rule in [
            "-A INPUT -p udp -m udp --dport 4789 -j ACCEPT",
            "-A INPUT -p udp -m multiport --dports 53,4000:5000 -j ACCEPT",
            "-A INPUT -s 192.0.2.0/24 -i eth0 -j ACCEPT",
        ] {
            assert_eq!(
                in_filter(&format!("{policy}{rule}"), "INPUT", &vxlan()),
                Fate::Passes,
                "{rule}"
            );
        }
        let reject = format!("{policy}-A INPUT -j REJECT --reject-with icmp-host-prohibited");
        let by = "the rule `-A INPUT -j REJECT --reject-with icmp-host-prohibited`".to_owned();
        assert_eq!(in_filter(&reject, "INPUT", &vxlan()), Fate::Dropped { by, certain: true });
    }

    #[test]
    fn what_is_no_listing_has_no_tables() {
        for text in ["", "COMMIT", "-A FORWARD -j DROP", ":FORWARD DROP", "*", "*filter\n-A \n:"] {
            assert!(tables(text, "FORWARD", &packet()).is_empty(), "{text:?}");
        }
    }
}
