//! Who depends on whom in the workspace.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

const PROGRAMS: [&str; 4] = ["cni-plugin", "ipam-controller", "vxlan-agent", "limpetctl"];

/// Every workspace package and the workspace packages that it is built with, itself left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked", "--no-deps"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let own: BTreeSet<String> = packages.iter().map(name).collect();
    let direct = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|one| one["kind"] != "dev").map(name).filter(|name| own.contains(name)).collect()
    };
    packages.iter().map(|package| (name(package), direct(package))).collect()
}

/// What `package` is built with, at any depth.
fn all_of(package: &str, direct: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![package.to_owned()];
    while let Some(next) = open.pop() {
        let new = direct[&next]
            .iter()
            .filter(|name| found.insert((*name).clone()))
            .cloned()
            .collect::<Vec<_>>();
        open.extend(new);
    }
    found
}

#[test]
fn programs_depend_on_crates_and_never_on_each_other() {
    let direct = dependencies();
    for package in direct.keys() {
        let all = all_of(package, &direct);
        let programs: Vec<_> =
            all.iter().filter(|name| PROGRAMS.contains(&name.as_str())).collect();
        assert!(programs.is_empty(), "{package} depends on {programs:?}");
    }
    assert!(PROGRAMS.iter().all(|name| direct.contains_key(*name)), "{:?}", direct.keys());
}

#[test]
fn controller_and_limpetctl_know_nothing_of_netlink() {
    let direct = dependencies();
    for package in ["ipam-controller", "limpetctl"] {
        assert!(
            !all_of(package, &direct).contains("limpet-rtnl"),
            "{package} depends on limpet-rtnl"
        );
    }
}

#[test]
fn the_types_depend_on_no_other_package_of_ours() {
    assert_eq!(dependencies()["limpet-net-types"], BTreeSet::new());
}
