//! Edge: the program against a fake controller: what it asks, prints and exits with.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, its helpers too")]

mod fake;

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use fake::{Fake, Reply};
use serde_json::{Value, json};

fn limpetctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_limpetctl"));
    for name in ["LIMPET_CONTROLLER", "LIMPET_PLAIN_HTTP", "LIMPET_TIMEOUT"] {
        command.env_remove(name);
    }
    command
}

/// Runs `limpetctl --controller <url> <words>`.
fn run(url: &str, words: &str) -> Output {
    limpetctl().args(["--controller", url]).args(words.split(' ')).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), stderr(output));
}

fn ok(body: &Value) -> Reply {
    Reply::Http(200, body.to_string())
}

fn refusal(status: u16, code: &str, message: &str) -> Reply {
    Reply::Http(status, json!({ "code": code, "message": message }).to_string())
}

fn network(name: &str) -> Value {
    json!({ "name": name, "vni": 7, "index": 1, "port": 4789, "revision": 3 })
}

fn listing(items: &[Value]) -> Value {
    json!({ "items": items, "revision": 5 })
}

fn pool() -> Value {
    json!({
        "name": "p", "network": "corp", "range": "10.32.0.0/16", "block_size": 64, "sticky": "auto",
        "retention": "7d", "cooldown": "1m", "priority": 0, "state": "active", "revision": 4,
        "usage": {"size": 65534, "held": 3, "reserved": 2, "cooling": 1, "free": 65528, "blocks": 2},
    })
}

fn reservation(namespace: &str) -> Value {
    json!({
        "network": "corp", "namespace": namespace, "name": "web-0", "mac": "02:4c:00:00:00:01",
        "addresses": [{"address": "10.32.0.7", "pool": "p"}], "retention": "7d", "origin": "automatic",
    })
}

#[test]
fn records_go_to_stdout_as_a_table_or_as_the_controllers_own_json() {
    let answer = listing(&[network("corp")]);
    let controller = Fake::always(ok(&answer));
    for words in ["network", "networks list", "network list"] {
        let output = run(&controller.url, words);
        assert_exit(&output, 0);
        let shown = "NAME  VNI  INDEX  MTU   PORT  SPACE   LETS IN\n\
                     corp  7    1      auto  4789  shared  -\n";
        assert_eq!(stdout(&output), shown);
        assert_eq!(stderr(&output), "");
    }
    let output = run(&controller.url, "network -o json");
    assert_exit(&output, 0);
    assert_eq!(serde_json::from_str::<Value>(stdout(&output)).unwrap(), answer);
    assert!(controller.asked().iter().all(|request| request == "GET /v1/networks"));
}

#[test]
fn what_is_created_is_put_under_its_name() {
    let controller = Fake::always(ok(&network("corp")));
    assert_exit(&run(&controller.url, "network create corp --vni 7 --mtu 1400"), 0);
    assert_exit(&run(&controller.url, "network set corp --mtu auto"), 0);
    assert_eq!(
        controller.asked(),
        [
            r#"PUT /v1/networks/corp {"vni":7,"mtu":1400}"#,
            r#"PATCH /v1/networks/corp {"mtu":null}"#
        ]
    );
}

#[test]
fn networks_are_opened_and_closed_without_reading_what_was_open_before() {
    let controller = Fake::always(ok(&network("corp")));
    assert_exit(&run(&controller.url, "network add corp --own-space"), 0);
    let output = run(&controller.url, "network allow lab corp");
    assert_exit(&output, 0);
    assert!(stdout(&output).contains("corp  7"), "{}", stdout(&output));
    let output = run(&controller.url, "network deny lab corp --both -o json");
    assert_exit(&output, 0);
    let both = json!({ "items": [network("corp"), network("corp")], "revision": 3 });
    assert_eq!(serde_json::from_str::<Value>(stdout(&output)).unwrap(), both);
    assert_eq!(
        controller.asked(),
        [
            r#"PUT /v1/networks/corp {"own_space":true}"#,
            r#"PATCH /v1/networks/corp {"also_allow":["lab"]}"#,
            r#"PATCH /v1/networks/corp {"deny":["lab"]}"#,
            r#"PATCH /v1/networks/lab {"deny":["corp"]}"#,
        ]
    );
}

#[test]
fn each_flag_of_a_pool_reaches_the_controller() {
    let controller = Fake::always(ok(&pool()));
    let create = "pool create p --network corp --range 10.32.0.0/16 --exclude 10.32.0.1/32,10.32.0.8..10.32.0.10 \
                  --block-size 16 --sticky always --retention forever --cooldown 90s --select-namespace a,b \
                  --select-name db-* --select-host-label rack=r1 --priority -2";
    assert_exit(&run(&controller.url, create), 0);
    let set = "pool set p --no-exclude --no-select --state draining --priority 4";
    assert_exit(&run(&controller.url, set), 0);
    let asked = controller.asked();
    let body =
        |n: usize| serde_json::from_str::<Value>(asked[n].splitn(3, ' ').nth(2).unwrap()).unwrap();
    assert_eq!(
        body(0),
        json!({
            "network": "corp", "range": "10.32.0.0/16", "exclude": ["10.32.0.1/32", "10.32.0.8..10.32.0.10"],
            "block_size": 16, "sticky": "always", "retention": "forever", "cooldown": "90s", "priority": -2,
            "select": {"namespaces": ["a", "b"], "names": ["db-*"], "host_labels": {"rack": "r1"}},
        })
    );
    assert_eq!(body(1), json!({ "exclude": [], "select": {}, "state": "draining", "priority": 4 }));
}

#[test]
fn what_a_host_is_set_to_takes_the_place_of_what_was() {
    let host = json!({
        "name": "h", "roles": ["node"], "vtep_mac": "02:4c:00:00:00:01", "alive": false,
        "attachments": 0, "revision": 3,
    });
    let controller = Fake::always(ok(&host));
    for words in [
        "host create h --role gateway,member --label rack=r1 --external 192.0.2.0/24",
        "host set h --role node --label a=b=c,d=",
        "host set h --no-label --no-external",
        "host set h --reinstalled",
        "host set h --networks corp,lab",
        "host set h --all-networks",
    ] {
        assert_exit(&run(&controller.url, words), 0);
    }
    assert_eq!(
        controller.asked(),
        [
            r#"PUT /v1/hosts/h {"roles":["member","gateway"],"labels":{"rack":"r1"},"external":["192.0.2.0/24"]}"#,
            r#"PATCH /v1/hosts/h {"roles":["node"],"labels":{"a":"b=c","d":""}}"#,
            r#"PATCH /v1/hosts/h {"labels":{},"external":[]}"#,
            r#"PATCH /v1/hosts/h {"reinstalled":true}"#,
            r#"PATCH /v1/hosts/h {"networks":["corp","lab"]}"#,
            r#"PATCH /v1/hosts/h {"networks":null}"#,
        ]
    );
}

#[test]
fn a_deletion_says_so_to_people_and_nothing_to_programs() {
    let controller = Fake::always(Reply::Http(204, String::new()));
    let output = run(&controller.url, "network delete corp --yes");
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "network corp is deleted\n");
    let output = run(&controller.url, "host delete a --yes -o json");
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "");
}

#[test]
fn the_attachments_of_a_host_that_goes_are_ended_some_at_a_time() {
    let left = std::sync::atomic::AtomicU64::new(3);
    let controller = Fake::start(move |request| match request {
        "DELETE /v1/hosts/a/attachments" => {
            let left = left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) - 1;
            ok(&json!({ "ended": 256, "left": left * 256 }))
        }
        _ => Reply::Http(204, String::new()),
    });
    let output = run(&controller.url, "host remove a --end-attachments --yes");
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "host a is deleted\n");
    let progress = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(progress.lines().last(), Some("768 of 768 attachments are ended"), "{progress}");
    assert_eq!(controller.asked().len(), 4);
    assert_eq!(controller.asked().last().unwrap(), "DELETE /v1/hosts/a");
}

#[test]
fn history_is_asked_for_page_by_page_and_nothing_is_asked_without_an_address_or_a_name() {
    let tenure = |container: &str, end: Value| {
        json!({
            "host": "a", "network": "corp", "container": container, "ifname": "eth0",
            "uid": "00112233445566778899aabbccddeeff", "namespace": "prod", "name": "web-0",
            "sticky": true, "mac": "02:4c:00:00:00:01", "runtime": "k8s", "from": 60, "end": end,
            "from_wall": "2026-11-20T14:05:07Z", "addresses": [{"address": "10.32.0.1", "pool": "p"}],
        })
    };
    let ended = json!({
        "at": 90, "wall": "2026-11-20T14:06:07Z", "reason": "detached", "by": {"host": "a"},
    });
    let controller = Fake::start(move |request| {
        let (tenure, next) = if request.contains("after=") {
            (tenure("c1", ended.clone()), None)
        } else {
            (tenure("c2", Value::Null), Some("5a-1"))
        };
        ok(&json!({ "items": [tenure], "revision": 5, "next": next }))
    });
    let output = run(&controller.url, "history prod/web-0 --at 2026-11-20T14:06");
    assert_exit(&output, 0);
    assert_eq!(stdout(&output).lines().count(), 3, "{}", stdout(&output));
    assert!(stdout(&output).ends_with("detached  host a\n"), "{}", stdout(&output));
    let moment = "2026-11-20T14%3A06%3A00Z";
    let first = format!("GET /v1/history?name=web-0&namespace=prod&since={moment}&until={moment}");
    assert_eq!(controller.asked(), [first.clone(), format!("{first}&after=5a-1&limit=5000")]);

    let output = run(&controller.url, "history --network corp");
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("whose history? give an address"), "{}", stderr(&output));
    assert_eq!(controller.asked().len(), 2);
}

#[test]
fn pools_are_listed_by_network() {
    let controller = Fake::always(ok(&listing(&[pool()])));
    let listed = |words: &str| stdout(&run(&controller.url, words)).lines().count();
    assert_eq!(listed("pool --network corp"), 2);
    assert_eq!(listed("pool list --network lab"), 1);
}

#[test]
fn the_only_network_is_taken_and_of_several_one_must_be_named() {
    let answer = |names: &'static [&str]| {
        Fake::start(move |request| match request {
            "GET /v1/networks" => {
                ok(&listing(&names.iter().copied().map(network).collect::<Vec<_>>()))
            }
            _ => ok(&pool()),
        })
    };
    let one = answer(&["corp"]);
    assert_exit(&run(&one.url, "pool create p --range 10.32.0.0/16"), 0);
    assert!(one.asked()[1].contains(r#""network":"corp""#));

    let several = answer(&["corp", "lab"]);
    let output = run(&several.url, "pool create p --range 10.32.0.0/16");
    assert_exit(&output, 1);
    assert_eq!(
        stderr(&output),
        "limpetctl: there are several networks: corp, lab\nhint: say which with --network\n"
    );
    assert_eq!(several.asked().len(), 1, "nothing was created");
}

#[test]
fn a_refusal_says_why_and_what_to_do_and_exits_1() {
    let controller = Fake::always(refusal(409, "vni-taken", "VNI 7 is taken by network lab"));
    let output = run(&controller.url, "network create corp --vni 7");
    assert_exit(&output, 1);
    assert_eq!(stdout(&output), "");
    assert_eq!(
        stderr(&output),
        "limpetctl: creating network corp: VNI 7 is taken by network lab (vni-taken)\n\
         hint: leave --vni out, and the smallest free one is taken\n"
    );
}

#[test]
fn a_message_from_the_network_cannot_drive_the_terminal() {
    let controller = Fake::always(refusal(422, "invalid", "x\u{1b}[2Jy\u{7}\nlimpetctl: fine"));
    let output = run(&controller.url, "host show a");
    assert_exit(&output, 1);
    assert_eq!(
        stderr(&output),
        "limpetctl: asking for host a: x\\u{1b}[2Jy\\u{7}\\nlimpetctl: fine (invalid)\n"
    );
}

#[test]
fn an_error_of_a_newer_controller_is_shown_with_its_message() {
    let controller = Fake::always(refusal(409, "of-tomorrow", "the tide is out"));
    let output = run(&controller.url, "host show a");
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("the tide is out"), "{}", stderr(&output));
}

#[test]
fn a_destructive_verb_shows_its_plan_and_does_nothing_without_yes() {
    let controller = Fake::always(ok(&pool()));
    let output = run(&controller.url, "pool delete p");
    assert_exit(&output, 2);
    assert_eq!(stdout(&output), "");
    assert_eq!(
        stderr(&output),
        "this would delete pool p of network corp: 10.32.0.0/16\n\
         3 of its addresses are held and 2 more reserved; it is refused while any is\n\
         hosts have 2 of its blocks\n\
         limpetctl: nothing was done: repeat with --yes to do it\n"
    );
    assert_eq!(controller.asked(), ["GET /v1/pools/p"]);

    assert_exit(&run(&controller.url, "pool delete p --yes"), 0);
    assert_eq!(controller.asked()[1..], ["DELETE /v1/pools/p"]);
}

#[test]
fn a_reservation_is_found_by_its_address_and_released_under_its_name() {
    let controller = Fake::start(|request| {
        if request.starts_with("DELETE") {
            return ok(&json!({ "addresses": ["10.32.0.7"], "revision": 8 }));
        }
        ok(&listing(&[reservation("prod")]))
    });
    let output = run(&controller.url, "reservation release 10.32.0.7");
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("prod/web-0"), "{}", stderr(&output));

    let output = run(&controller.url, "reservation release 10.32.0.7 --yes");
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "the reservation of prod/web-0 is released: 10.32.0.7\n");
    assert_eq!(
        controller.asked()[1..],
        ["GET /v1/reservations?address=10.32.0.7", "DELETE /v1/reservations/corp/prod/web-0"]
    );
}

#[test]
fn a_name_in_two_namespaces_is_refused_with_both() {
    let controller = Fake::always(ok(&listing(&[reservation("prod"), reservation("test")])));
    let output = run(&controller.url, "reservation set web-0 --retention 1d");
    assert_exit(&output, 1);
    let text = stderr(&output);
    assert!(text.contains("prod/web-0") && text.contains("test/web-0"), "{text}");
    assert!(text.contains("hint: narrow it down with --namespace or --network\n"), "{text}");
    assert_eq!(controller.asked(), ["GET /v1/reservations?name=web-0"]);
}

#[test]
fn filters_are_the_listings_query() {
    let controller = Fake::always(ok(&listing(&[])));
    assert_exit(&run(&controller.url, "attachment --host node-a -n prod"), 0);
    assert_exit(&run(&controller.url, "reservation list --network corp"), 0);
    assert_exit(&run(&controller.url, "reservation show a -n b --network c --host d"), 1);
    assert_exit(&run(&controller.url, "reservation show a -n b --network c"), 1);
    assert_eq!(
        controller.asked(),
        [
            "GET /v1/attachments?host=node-a&namespace=prod",
            "GET /v1/reservations?network=corp",
            "GET /v1/reservations?host=d&name=a&namespace=b&network=c",
            "GET /v1/reservations/c/b/a",
        ]
    );
}

#[test]
fn a_long_list_is_taken_page_by_page() {
    let controller = Fake::start(|request| {
        let (items, next) = match request.split_once("after=") {
            None => (vec![reservation("prod")], json!("corp/prod/web-0")),
            Some((_, "corp%2Fprod%2Fweb-0&limit=5000")) => (vec![], json!("corp/x/y")),
            Some(_) => (vec![reservation("test")], json!(null)),
        };
        ok(&json!({ "items": items, "revision": 7, "next": next }))
    });
    let output = run(&controller.url, "reservation --network corp -o json");
    assert_exit(&output, 0);
    let all: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(all["items"], json!([reservation("prod"), reservation("test")]));
    assert_eq!(controller.asked().len(), 3);
}

#[test]
fn misuse_exits_2_and_asks_nothing() {
    let controller = Fake::always(ok(&listing(&[])));
    for words in [
        "network create a/b",
        "pool set p",
        "host set h",
        "pool --network corp show p",
        "reservation -n prod release web-0",
        "reservation --host node-a show web-0",
        "attachment --host a show web-0",
        "nothing",
    ] {
        let output = run(&controller.url, words);
        assert_exit(&output, 2);
        assert_eq!(stdout(&output), "", "{words}");
        assert!(!stderr(&output).is_empty(), "{words}");
    }
    assert_eq!(controller.asked(), [""; 0]);
}

#[test]
fn a_controller_elsewhere_needs_leave_for_plain_http() {
    let output = run("http://192.0.2.1:7600", "host");
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("--plain-http"), "{}", stderr(&output));
    let started = Instant::now();
    let output = run("http://192.0.2.1:7600", "host --plain-http --timeout 1s");
    assert_exit(&output, 1);
    assert!(
        stderr(&output).contains("cannot connect to http://192.0.2.1:7600"),
        "{}",
        stderr(&output)
    );
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn garbage_is_no_answer() {
    for reply in [
        Reply::Http(200, "<html>hello</html>".to_owned()),
        Reply::Http(200, String::new()),
        Reply::Http(200, r#"{"items":[{"name":"a b"}],"revision":1}"#.to_owned()),
        Reply::Http(502, "Bad Gateway".to_owned()),
        Reply::Bytes(b"\x00\x01\x02 what\r\n\r\n"),
        Reply::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{\"items\":["),
        Reply::Bytes(b""),
    ] {
        let controller = Fake::always(reply);
        let output = run(&controller.url, "network");
        assert_exit(&output, 1);
        assert_eq!(stdout(&output), "");
        let text = stderr(&output);
        assert!(text.starts_with("limpetctl: asking for networks: "), "{text}");
        assert!(text.contains(&controller.url) && text.contains("\nhint: "), "{text}");
    }
}

#[test]
fn a_controller_that_does_not_answer_is_waited_for_as_long_as_said() {
    let controller = Fake::always(Reply::Silence);
    let started = Instant::now();
    let output = run(&controller.url, "network create corp --timeout 1s");
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("did not answer within 1s"), "{}", stderr(&output));
    assert!(stderr(&output).contains("hint: a change may have been made"), "{}", stderr(&output));
    assert!((1..5).contains(&started.elapsed().as_secs()));
}

/// The address of a port on which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn an_absent_controller_is_named_and_the_next_one_is_asked() {
    let absent = nobody();
    let output = run(&absent, "host");
    assert_exit(&output, 1);
    let text = stderr(&output);
    assert!(text.contains(&format!("cannot connect to {absent}: Connection refused")), "{text}");
    assert!(text.contains("hint: is limpet-controller running there?"), "{text}");

    let there = Fake::always(ok(&listing(&[])));
    assert_exit(&run(&format!("{absent},{}", there.url), "host"), 0);
    let output = limpetctl()
        .env("LIMPET_CONTROLLER", format!("{absent},{}", there.url))
        .args(["host", "list"])
        .output()
        .unwrap();
    assert_exit(&output, 0);
    assert_eq!(there.asked().len(), 2);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let networks: Vec<Value> = (0..5000).map(|n| network(&format!("network-{n}"))).collect();
    let controller = Fake::always(ok(&listing(&networks)));
    let mut child = limpetctl()
        .args(["--controller", &controller.url, "network", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_exit(&output, 0);
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_full_disk_is_a_failure() {
    let controller = Fake::always(ok(&listing(&[network("corp")])));
    let output = limpetctl()
        .args(["--controller", &controller.url, "network"])
        .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("writing to stdout: No space left"), "{}", stderr(&output));
}

#[test]
fn completion_needs_no_controller_and_bash_takes_it() {
    let output = run(&nobody(), "completion bash");
    assert_exit(&output, 0);
    assert!(stdout(&output).contains("reservation"));
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), &output.stdout).unwrap();
    let bash = Command::new("bash").arg("-n").arg(script.path()).output().unwrap();
    assert!(bash.status.success() && bash.stderr.is_empty(), "{}", stderr(&bash));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert_exit(&run(&nobody(), &format!("completion {shell}")), 0);
    }
}

#[test]
fn help_and_version_are_results() {
    for words in ["--help", "pool create --help", "--version"] {
        let output = limpetctl().args(words.split(' ')).output().unwrap();
        assert_exit(&output, 0);
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn of_several_controllers_one_that_works_answers_and_nobody_notices_the_others() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let works = Fake::always(ok(&listing(&[network("corp")])));
    for broken in [
        Reply::Silence,
        Reply::Bytes(b"220 mail.example ESMTP\r\n"),
        Reply::Bytes(b""),
        Reply::Http(200, "<html>".to_owned()),
        refusal(503, "unavailable", "the store is away"),
    ] {
        let broken = Fake::always(broken);
        let urls = format!("http://{free},{},{}", broken.url, works.url);
        let output = run(&urls, "network");
        assert_exit(&output, 0);
        assert!(stdout(&output).contains("corp"), "{}", stdout(&output));
        assert_eq!(stderr(&output), "");
        assert!(broken.asked().contains(&"GET /v1/networks".to_owned()));
    }
}

#[test]
fn what_another_controller_has_deleted_without_an_answer_is_deleted() {
    let gone = |request: &str| match request {
        "GET /v1/reservations?name=web-0" => ok(&listing(&[reservation("prod")])),
        _ if request.contains("reservations") => {
            refusal(404, "reservation-not-found", "there is no such reservation")
        }
        _ => refusal(404, "network-not-found", "there is no network corp"),
    };
    // The first one does it and dies before it says so.
    let dies = Fake::start(move |request| match request {
        _ if request.starts_with("DELETE") => Reply::Bytes(b""),
        _ => gone(request),
    });
    let other = Fake::start(gone);
    let urls = format!("{},{}", dies.url, other.url);
    let output = run(&urls, "network delete corp --yes");
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "network corp is deleted\n");
    let output = run(&urls, "reservation release web-0 --yes");
    assert_exit(&output, 0);
    assert!(stdout(&output).contains("is released\n"), "{}", stdout(&output));
    let output = run(&urls, "network delete corp --yes -o json");
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "");
    // Where every answer was heard it was not there.
    let output = run(&other.url, "network delete corp --yes");
    assert_exit(&output, 1);
    let urls = format!(
        "http://{},{}",
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        other.url
    );
    assert_exit(&run(&urls, "network delete corp --yes"), 1);
}

#[test]
fn the_idle_reservations_of_a_pool_are_released_piece_by_piece() {
    let controller = Fake::start(|request| {
        let name = |name: &str| json!({ "namespace": "prod", "name": name, "addresses": ["10.32.0.7"], "detached_for": "3h" });
        if request.contains("after=10.32.0.7") {
            ok(&json!({ "released": [name("web-1")], "revision": 9 }))
        } else {
            ok(&json!({ "released": [name("web-0")], "next": "10.32.0.7", "revision": 8 }))
        }
    });
    let words = "reservation release --pool p -n prod --detached-for 2h";
    let planned = run(&controller.url, words);
    assert_exit(&planned, 2);
    assert_eq!(stdout(&planned), "");
    assert!(
        stderr(&planned).contains("prod/web-0: 10.32.0.7, idle for 3h"),
        "{}",
        stderr(&planned)
    );
    assert!(stderr(&planned).contains("nothing was done"), "{}", stderr(&planned));
    let listed = run(&controller.url, &format!("{words} --dry-run"));
    assert_exit(&listed, 0);
    assert!(stdout(&listed).contains("prod       web-1  10.32.0.7  3h"), "{}", stdout(&listed));
    assert!(controller.asked().iter().all(|request| request.contains("dry_run=true")));

    let before = controller.asked().len();
    let done = run(&controller.url, &format!("{words} --yes"));
    assert_exit(&done, 0);
    assert_eq!(stdout(&done), "2 reservations of pool p released\n");
    assert_eq!(
        controller.asked()[before..],
        [
            "DELETE /v1/pools/p/reservations?detached_for=2h&limit=256&namespace=prod",
            "DELETE /v1/pools/p/reservations?after=10.32.0.7&detached_for=2h&limit=256&namespace=prod",
        ]
    );
    let json = run(&controller.url, &format!("{words} --yes -o json"));
    let names: Value = serde_json::from_str(stdout(&json)).unwrap();
    assert_eq!(names["released"][1]["name"], "web-1");
}

#[test]
fn a_pool_that_is_drained_is_shown_with_who_is_left() {
    let controller = Fake::start(|request| {
        let mut pool = pool();
        pool["state"] = json!(if request.contains("\"active\"") { "active" } else { "draining" });
        let left =
            json!({ "address": "10.32.0.1", "namespace": "_", "name": "web-0", "reserved": true });
        if request.contains("/addresses") { ok(&listing(&[left])) } else { ok(&pool) }
    });
    for words in ["pool drain p", "pool show p"] {
        let output = run(&controller.url, words);
        assert_exit(&output, 0);
        assert!(stdout(&output).contains("still held or reserved: 5\n"), "{}", stdout(&output));
    }
    let json = run(&controller.url, "pool show p -o json");
    let shown: Value = serde_json::from_str(stdout(&json)).unwrap();
    assert_eq!((&shown["name"], &shown["addresses"][0]["name"]), (&json!("p"), &json!("web-0")));
    let output = run(&controller.url, "pool undrain p");
    assert!(!stdout(&output).contains("still held"), "{}", stdout(&output));
    assert_eq!(
        controller.asked(),
        [
            r#"PATCH /v1/pools/p {"state":"draining"}"#,
            "GET /v1/pools/p/addresses?limit=20",
            "GET /v1/pools/p",
            "GET /v1/pools/p/addresses?limit=20",
            "GET /v1/pools/p",
            "GET /v1/pools/p/addresses",
            r#"PATCH /v1/pools/p {"state":"active"}"#,
        ]
    );
}

#[test]
fn a_reservation_is_renamed_by_both_its_names() {
    let controller = Fake::always(ok(&reservation("shop")));
    assert_exit(&run(&controller.url, "reservation rename web-0 shop/web-0 --network corp"), 0);
    assert_eq!(
        controller.asked(),
        [r#"POST /v1/reservations/corp/_/web-0/rename {"namespace":"shop","name":"web-0"}"#]
    );
}
