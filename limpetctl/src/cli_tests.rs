//! Pure: tests of the command line: what is taken, and what is refused with which words.

use super::*;

fn parsed(words: &str) -> Result<Cli, String> {
    Cli::try_parse_from(["limpetctl"].into_iter().chain(words.split(' ')))
        .map_err(|error| error.to_string())
}

#[track_caller]
fn refused(words: &str, because: &str) {
    let error = parsed(words).map(|cli| format!("{cli:?}")).unwrap_err();
    let flat = error.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat.contains(because), "`{words}` is refused with: {error}");
}

#[test]
fn the_definition_is_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn a_noun_alone_and_options_in_any_place_are_taken() {
    for words in [
        "network",
        "networks list",
        "-o json pool --network corp",
        "pool list --network corp -o json",
        "pool -o json list",
        "reservation -n prod",
        "reservation show web-0 -n prod --network corp",
        "reservation release --pool p -n prod --detached-for 2h --dry-run",
        "reservation rename web-0 shop/web-0",
        "attachment show 10.32.0.7",
        "attachment --host node-a",
        "host create gw-1 --role gateway,member --external 192.0.2.0/24 --external 2001:db8::/64",
        "host set a --no-label",
        "pool create p --range 10.32.0.10..10.32.0.99 --exclude 10.32.0.11/32,10.32.0.12..10.32.0.13",
        "pool set p --priority -3 --state draining",
        "network set corp --mtu auto",
        "network add lab --own-space",
        "network allow lab corp",
        "network deny lab corp --both",
        "host create a --networks corp,lab",
        "host set a --networks corp --networks lab",
        "host set a --all-networks",
        "--timeout 1m --controller http://192.0.2.1:7600,http://[2001:db8::1]:7600 --plain-http host",
        "completion fish",
        "quota",
        "quotas list",
        "quota set prod --addresses 100",
        "quota delete _",
        "history 10.32.0.7 --at 2026-11-20T14:05",
        "history prod/web-0 --since 2026-11-20T14:05:07Z --until 2026-11-20T15:00:00+01:00 -o json",
        "history --host node-a -n prod --network corp",
    ] {
        assert!(parsed(words).is_ok(), "{words}: {}", parsed(words).unwrap_err());
    }
}

#[test]
fn a_release_is_of_a_name_or_of_a_pool() {
    refused("reservation release", "<NAME|ADDRESS>");
    refused("reservation release web-0 --pool p", "cannot be used with");
    refused("reservation release --pool p --network corp", "cannot be used with");
    refused("reservation release --pool p --dry-run --yes", "cannot be used with");
    refused("reservation release web-0 --dry-run", "cannot be used with");
    refused("reservation release web-0 --detached-for 2h", "cannot be used with");
    refused("reservation rename a/b/c d", "has '/' at position 2");
}

#[test]
fn bad_names_say_what_is_wrong_with_them() {
    let long = "x".repeat(300);
    refused("network create a/b", "network name \"a/b\" has '/' at position 2");
    refused(&format!("network create {long}"), "is 300 characters long, at most 63 are allowed");
    refused("pool show b\u{e4}r", "has '\u{e4}' at position 2");
    refused("network create Corp", "allowed are a-z, 0-9");
    refused("reservation create a/b", "workload name \"a/b\" has '/' at position 2");
    refused(&format!("reservation show {long}"), "is 300 characters long, at most 253");
    refused("attachment show a/b", "container ID \"a/b\" has '/'");
    refused("reservation -n a/b", "namespace \"a/b\" has '/'");
    let spaced = Cli::try_parse_from(["limpetctl", "host", "create", "a b"]);
    assert!(spaced.unwrap_err().to_string().contains("\"a b\" has ' ' at position 2"));
    let empty = Cli::try_parse_from(["limpetctl", "host", "create", ""]);
    assert!(empty.unwrap_err().to_string().contains("a host name is empty"));
}

#[test]
fn bad_numbers_and_addresses_say_what_would_be_right() {
    refused("network create n --vni 16777216", "VNI 16777216 is not in 1..=16777215");
    refused("network create n --vni 0", "VNI 0 is not in");
    refused("network create n --vni 99999999999", "it is not a whole number");
    refused("network create n --vni x", "it is not a whole number");
    refused("network create n --mtu 1279", "MTU 1279 is not in 1280..=65535");
    refused("network create n --port 0", "0 is not in 1..=65535");
    refused("network set n", "--mtu <BYTES|auto>");
    refused("pool create p", "--range <RANGE>");
    refused("pool create p --range 10.32.0.1/16", "write 10.32.0.0/16");
    refused("pool create p --range 10.32.0.9..10.32.0.1", "ends before it begins");
    refused("pool create p --range 10.32.0.9..fd32::1", "different address families");
    refused("pool create p --range web", "is neither a prefix such as");
    refused("pool create p --range 10.0.0.0/8 --retention soon", "not a length of time such as");
    refused(
        "pool create p --range 10.0.0.0/8 --sticky sometimes",
        "[possible values: always, auto, never]",
    );
    refused("pool set p --no-select --select-name x", "cannot be used with");
    refused("network allow corp", "<INTO>");
    refused("host set a --networks corp --all-networks", "cannot be used with");
    refused("host set a --networks Corp", "allowed are a-z, 0-9");
    refused("host create h --role router", "[possible values: node, member, gateway]");
    refused("host create h --label rack", "a label is written key=value");
    refused("host create h --external 192.0.2.1", "is not a prefix such as");
    refused("reservation create web-0 --mac 01:00:5e:00:00:01", "multicast");
    refused("reservation create web-0 --address 10.32.0", "invalid IP address syntax");
    refused("--controller 192.0.2.1 host", "is not an address of a controller such as");
    refused("--controller https://192.0.2.1:7600 host", "asks for TLS");
    refused("--timeout 0s host", "at least 1s");
    refused("--timeout 5 host", "not a length of time");
    refused("-o yaml host", "[possible values: table, json]");
    refused("history web-0 --at yesterday", "is not a date and time such as 2026-11-20T14:05");
    refused("history web-0 --at 2026-11-20T14:05 --since 2026-11-20T14:05", "cannot be used with");
    refused("history a/b/c", "has '/' at position 2");
    refused("quota set prod", "--addresses <COUNT>");
    refused("quota set prod --addresses many", "invalid digit");
    refused("pod", "unrecognized subcommand");
}

/// The lines of the section whose heading is `heading`, up to the next heading.
fn section(heading: &str) -> Vec<&'static str> {
    include_str!("../../docs/limpetctl.md")
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with("##"))
        .collect()
}

/// Every command that does something, with its path, such as `pool create`.
fn leaves(command: &clap::Command, path: &str) -> Vec<(String, clap::Command)> {
    if command.has_subcommands() {
        let below = |sub: &clap::Command| leaves(sub, &format!("{path} {}", sub.get_name()));
        command.get_subcommands().flat_map(below).collect()
    } else {
        vec![(path.to_owned(), command.clone())]
    }
}

fn options(command: &clap::Command) -> impl Iterator<Item = String> {
    command.get_arguments().filter_map(|arg| arg.get_long()).map(|long| format!("--{long}"))
}

/// The options that a text mentions.
fn mentioned(text: &str) -> impl Iterator<Item = String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    text.split(move |c| !word(c))
        .filter(|word| word.len() > 2 && word.starts_with("--") && !word.ends_with('-'))
        .map(str::to_owned)
}

#[test]
fn the_manual_has_every_command_with_exactly_its_options() {
    use clap::CommandFactory;
    use std::collections::BTreeSet;

    let cli = Cli::command();
    let global: BTreeSet<String> =
        options(&cli).chain(["--help", "--version"].map(str::to_owned)).collect();
    let text = section("## Options of every command").join("\n");
    assert_eq!(mentioned(&text).collect::<BTreeSet<_>>(), global);

    for (path, command) in leaves(&cli, "limpetctl") {
        let text = section(&format!("### `{path}`")).join("\n");
        assert!(!text.trim().is_empty(), "docs/limpetctl.md has no section `{path}`");
        let described: BTreeSet<String> = mentioned(&text).collect();
        assert_eq!(described, options(&command).collect(), "`{path}` in docs/limpetctl.md");
    }
}
