//! The files under `examples/` that people install as they are.

use std::fs;
use std::path::{Path, PathBuf};

use netns_tests::{binary, sh, state_dir, unique};
use serde_json::Value;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    let dir = state_dir(&unique("units"));
    for (unit, program) in
        [("limpet-controller", "limpet-controller"), ("limpet-agent", "limpet-agent")]
    {
        let text = fs::read_to_string(examples().join(format!("systemd/{unit}.service"))).unwrap();
        let installed = format!("ExecStart=/usr/bin/{program}");
        assert!(text.contains(&installed) && text.contains("Type=notify"), "{text}");
        // The program under test is not installed here.
        let built = format!("ExecStart={}", binary(program).display());
        let file = dir.join(format!("{unit}.service"));
        fs::write(&file, text.replace(&installed, &built)).unwrap();
        // Its exit status is success also for an unknown key: what counts is what it prints.
        let said = sh(&format!("systemd-analyze verify --man=no {} 2>&1", file.display()));
        assert_eq!(said, "");
    }
}

#[test]
fn a_unit_with_a_misspelt_key_would_be_found() {
    let file = state_dir(&unique("units")).join("x.service");
    fs::write(&file, "[Service]\nExecStart=/bin/true\nRestrt=always\n").unwrap();
    let said = sh(&format!("systemd-analyze verify --man=no {} 2>&1 || true", file.display()));
    assert!(said.contains("Restrt"), "{said}");
}

#[test]
fn the_units_start_the_programs_with_flags_that_they_have() {
    for (unit, program) in
        [("limpet-controller", "limpet-controller"), ("limpet-agent", "limpet-agent")]
    {
        let text = fs::read_to_string(examples().join(format!("systemd/{unit}.service"))).unwrap();
        let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let help = sh(&format!("{} --help", binary(program).display()));
        for flag in start.split(' ').filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "{program} has no {flag}");
        }
        for line in text.lines().filter_map(|line| line.strip_prefix("Environment=")) {
            let variable = line.split('=').next().unwrap();
            assert!(help.contains(variable), "{program} reads no {variable}");
        }
    }
}

#[test]
fn the_conflists_say_1_0_0_and_name_limpet_first() {
    for file in ["kubernetes/10-limpet.conflist", "podman/pods.conflist"] {
        let conflist: Value =
            serde_json::from_str(&fs::read_to_string(examples().join(file)).unwrap()).unwrap();
        // containerd before 2.0 rejects results of 1.1.0, and only after the container was attached.
        assert_eq!(conflist["cniVersion"], "1.0.0", "{file}");
        assert_eq!(conflist["plugins"][0]["type"], "limpet", "{file}");
    }
}
