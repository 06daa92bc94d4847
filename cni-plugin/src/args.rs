//! Pure: the variable `CNI_ARGS`: `KEY=VALUE` pairs between semicolons, in any order.

use std::net::IpAddr;

use limpet_net_types::{Mac, Namespace, PoolName, WorkloadName};

use crate::config::address;
use crate::error::{Code, Failure};

/// What `CNI_ARGS` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CniArgs {
    pub(crate) limpet_namespace: Option<Namespace>,
    pub(crate) limpet_name: Option<WorkloadName>,
    pub(crate) limpet_pools: Option<Vec<PoolName>>,
    pub(crate) limpet_sticky: Option<bool>,
    pub(crate) pod_namespace: Option<Namespace>,
    pub(crate) pod_name: Option<WorkloadName>,
    pub(crate) ips: Option<Vec<IpAddr>>,
    pub(crate) mac: Option<Mac>,
}

impl CniArgs {
    /// Reads the variable.
    ///
    /// A key that is not known is refused unless `IgnoreUnknown` is given; one that begins as limpet's own do is
    /// refused all the same, since it can only be a misspelt one of those.
    pub(crate) fn read(text: &str) -> Result<Self, Failure> {
        let pairs = pairs(text)?;
        let mut args = Self::default();
        let ignore_unknown = pairs.iter().any(|&(key, value)| {
            key == "IgnoreUnknown" && (value == "1" || value.eq_ignore_ascii_case("true"))
        });
        for (key, value) in pairs {
            let wrong = |reason: String| refuse(&format!("{key}={value}: {reason}"));
            // What is given and empty is not given: runtimes set variables that they have no value for.
            if value.is_empty() && key != "IgnoreUnknown" && !key.is_empty() {
                continue;
            }
            match key {
                "LIMPET_NAMESPACE" => args.limpet_namespace = Some(parse(value).map_err(wrong)?),
                "LIMPET_NAME" => args.limpet_name = Some(parse(value).map_err(wrong)?),
                "LIMPET_POOL" => args.limpet_pools = Some(list(value, parse).map_err(wrong)?),
                "LIMPET_STICKY" => args.limpet_sticky = Some(truth(value).map_err(wrong)?),
                "K8S_POD_NAMESPACE" => args.pod_namespace = Some(parse(value).map_err(wrong)?),
                "K8S_POD_NAME" => args.pod_name = Some(parse(value).map_err(wrong)?),
                "IP" => args.ips = Some(list(value, address).map_err(wrong)?),
                "MAC" => args.mac = Some(parse(value).map_err(wrong)?),
                "IgnoreUnknown" | "K8S_POD_INFRA_CONTAINER_ID" | "K8S_POD_UID" => {}
                key if ignore_unknown && !key.starts_with("LIMPET_") => {}
                key => {
                    let hint =
                        if key.starts_with("LIMPET_") { "" } else { " (and no IgnoreUnknown=1)" };
                    return Err(refuse(&format!("unknown key {key:?}{hint}")));
                }
            }
        }
        Ok(args)
    }
}

fn pairs(text: &str) -> Result<Vec<(&str, &str)>, Failure> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| refuse(&format!("{pair:?} is not KEY=VALUE")))?;
        if let Some((_, other)) = pairs.iter().find(|(seen, _)| *seen == key)
            && *other != value
        {
            return Err(refuse(&format!("{key} is given twice, as {other:?} and as {value:?}")));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

fn refuse(reason: &str) -> Failure {
    Failure::new(Code::Environment, format!("CNI_ARGS: {reason}"))
}

fn parse<T: std::str::FromStr<Err: ToString>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(parse).collect()
}

fn truth(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let failure = CniArgs::read(text).unwrap_err();
        assert_eq!(failure.code, Code::Environment);
        failure.message
    }

    #[test]
    fn the_order_of_the_pairs_does_not_matter() {
        let pairs = [
            "IgnoreUnknown=1",
            "K8S_POD_NAMESPACE=shop",
            "K8S_POD_NAME=web-0",
            "K8S_POD_INFRA_CONTAINER_ID=c1",
            "K8S_POD_UID=7f",
            "SOMETHING=else",
        ];
        let read = |n: usize| {
            let mut turned = pairs;
            turned.rotate_left(n);
            CniArgs::read(&turned.join(";")).unwrap()
        };
        assert_eq!(read(0).pod_name, Some("web-0".parse().unwrap()));
        assert_eq!(read(0).pod_namespace, Some("shop".parse().unwrap()));
        assert!((1..6).all(|n| read(n) == read(0)));
    }

    #[test]
    fn an_unknown_key_is_refused_unless_it_is_to_be_ignored() {
        assert_eq!(refused("FOO=1"), "CNI_ARGS: unknown key \"FOO\" (and no IgnoreUnknown=1)");
        assert_eq!(refused("IgnoreUnknown=0;FOO=1"), refused("FOO=1"));
        for yes in ["1", "true", "True"] {
            assert_eq!(
                CniArgs::read(&format!("FOO=1;IgnoreUnknown={yes}")),
                Ok(CniArgs::default())
            );
        }
    }

    #[test]
    fn a_misspelt_key_of_limpet_is_refused_always() {
        assert_eq!(
            refused("IgnoreUnknown=1;LIMPET_POOLS=a"),
            "CNI_ARGS: unknown key \"LIMPET_POOLS\""
        );
    }

    #[test]
    fn values_are_checked_and_named() {
        assert_eq!(refused("K8S_POD_NAME"), "CNI_ARGS: \"K8S_POD_NAME\" is not KEY=VALUE");
        assert!(
            refused("K8S_POD_NAME=a/b").starts_with("CNI_ARGS: K8S_POD_NAME=a/b: workload name")
        );
        assert!(refused(&format!("K8S_POD_NAME={}", "x".repeat(300))).contains("300 characters"));
        assert!(refused("LIMPET_NAMESPACE=b\u{e4}r").contains("'\u{e4}' at position 2"));
        assert_eq!(refused("IP=10.0.0"), "CNI_ARGS: IP=10.0.0: \"10.0.0\" is not an IP address");
        assert!(refused("MAC=1").contains("is not a MAC address"));
        assert_eq!(
            refused("LIMPET_STICKY=yes"),
            "CNI_ARGS: LIMPET_STICKY=yes: neither true nor false"
        );
        assert_eq!(
            refused("IP=::1;IP=::2"),
            "CNI_ARGS: IP is given twice, as \"::1\" and as \"::2\""
        );
    }

    #[test]
    fn addresses_and_pools_are_lists() {
        let args =
            CniArgs::read("IP=10.0.0.5/16,fd00::5;LIMPET_POOL=a,b;LIMPET_STICKY=TRUE").unwrap();
        assert_eq!(args.ips, Some(vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()]));
        assert_eq!(args.limpet_pools, Some(vec!["a".parse().unwrap(), "b".parse().unwrap()]));
        assert_eq!(args.limpet_sticky, Some(true));
    }

    #[test]
    fn what_is_empty_is_not_given() {
        assert_eq!(CniArgs::read(""), Ok(CniArgs::default()));
        assert_eq!(CniArgs::read("K8S_POD_NAME=;IP=;"), Ok(CniArgs::default()));
    }
}
