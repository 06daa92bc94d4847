//! Pure: one call of the plugin, from environment and configuration to a checked request.

use std::net::IpAddr;
use std::path::PathBuf;

use limpet_api::host::Wanted;
use limpet_net_types::{ContainerId, Family, IfName};
use serde_json::{Map, Value};

use crate::args::CniArgs;
use crate::config::{Config, Reading, Valid, Version, version_of};
use crate::error::{Code, Failure};

/// The variables that runtimes set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    pub(crate) command: String,
    pub(crate) container_id: String,
    pub(crate) netns: String,
    pub(crate) ifname: String,
    pub(crate) args: String,
}

/// What the plugin is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Version,
    Add,
    Del,
    Check,
    Status,
    Gc,
}

/// A checked call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    Add(Box<Add>),
    Del(Box<Del>),
    Check(Box<Check>),
    Status(Box<Config>),
    Gc(Box<Gc>),
}

/// Which interface of which container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) container: ContainerId,
    pub(crate) ifname: IfName,
}

/// ADD.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Add {
    pub(crate) config: Config,
    pub(crate) target: Target,
    pub(crate) netns: PathBuf,
    pub(crate) wanted: Wanted,
}

/// DEL. The namespace may be gone, and the runtime may not know it any more.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Del {
    pub(crate) config: Config,
    pub(crate) target: Target,
    pub(crate) netns: Option<PathBuf>,
}

/// CHECK.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Check {
    pub(crate) config: Config,
    pub(crate) target: Target,
    pub(crate) netns: PathBuf,
    pub(crate) prev_result: Value,
}

/// GC.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gc {
    pub(crate) config: Config,
    pub(crate) valid: Vec<Valid>,
}

impl Verb {
    /// Reads `CNI_COMMAND`.
    pub(crate) fn of(command: &str) -> Result<Self, Failure> {
        Ok(match command {
            "VERSION" => Self::Version,
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            "" => {
                let message = "CNI_COMMAND is not set: limpet is called by a container runtime";
                return Err(Failure::new(Code::Environment, message));
            }
            other => {
                let other: String = other.chars().take(40).collect();
                let message = format!("CNI_COMMAND={other:?} is no command of the specification");
                return Err(Failure::new(Code::Environment, message));
            }
        })
    }

    /// The version of the specification that introduced it.
    fn since(self) -> Version {
        match self {
            Self::Version | Self::Add | Self::Del => Version::V0_3_1,
            Self::Check => Version::V0_4_0,
            Self::Status | Self::Gc => Version::V1_1_0,
        }
    }
}

impl Request {
    /// Checks a call of any verb but VERSION, which needs none of this.
    pub(crate) fn read(
        verb: Verb,
        fields: Map<String, Value>,
        environment: &Environment,
    ) -> Result<Self, Failure> {
        if verb != Verb::Del {
            let version = version_of(&fields)?;
            if version < verb.since() {
                let (since, version) = (verb.since().as_str(), version.as_str());
                let command = &environment.command;
                let message = format!("{command} needs cniVersion {since} or newer, not {version}");
                return Err(Failure::new(Code::Version, message));
            }
        }
        let reading = if verb == Verb::Del { Reading::Lenient } else { Reading::Strict };
        let config = || Config::read(fields, reading);
        match verb {
            Verb::Add => {
                environment.require(true)?;
                add(config()?, environment).map(Box::new).map(Self::Add)
            }
            Verb::Del => {
                environment.require(false)?;
                let netns =
                    (!environment.netns.is_empty()).then(|| PathBuf::from(&environment.netns));
                let target = environment.target()?;
                Ok(Self::Del(Box::new(Del { config: config()?, target, netns })))
            }
            Verb::Check => {
                environment.require(true)?;
                check(config()?, environment).map(Box::new).map(Self::Check)
            }
            Verb::Status => Ok(Self::Status(Box::new(config()?))),
            Verb::Version => unreachable!("VERSION is answered before a configuration is read"),
            Verb::Gc => {
                let config = config()?;
                let valid = config.valid.clone().ok_or_else(|| {
                    let message = "field `cni.dev/valid-attachments` is missing: without the list of what is valid all would be collected";
                    Failure::new(Code::Config, message)
                })?;
                Ok(Self::Gc(Box::new(Gc { config, valid })))
            }
        }
    }
}

fn check(mut config: Config, environment: &Environment) -> Result<Check, Failure> {
    let prev_result = config.prev_result.take().ok_or_else(|| {
        Failure::new(Code::Config, "field `prevResult` is missing: CHECK compares with it")
    })?;
    let target = environment.target()?;
    Ok(Check { config, target, netns: PathBuf::from(&environment.netns), prev_result })
}

fn add(config: Config, environment: &Environment) -> Result<Add, Failure> {
    let target = environment.target()?;
    let args = CniArgs::read(&environment.args)?;
    let limpet = &config.args.limpet;
    let pools = args.limpet_pools.clone().or_else(|| limpet.pools.clone()).unwrap_or_default();
    if pools.len() > 2 {
        let message =
            format!("{} pools are asked for, at most one of a family is possible", pools.len());
        return Err(Failure::new(Code::Config, message));
    }
    let namespace = [&args.limpet_namespace, &limpet.namespace, &args.pod_namespace];
    let name = [&args.limpet_name, &limpet.name, &args.pod_name];
    let wanted = Wanted {
        runtime: config.runtime.clone(),
        netns: environment.netns.clone(),
        namespace: namespace.into_iter().flatten().next().cloned().unwrap_or_default(),
        name: name.into_iter().flatten().next().cloned(),
        pools,
        addresses: addresses(&config, &args)?,
        mac: agreed([
            ("runtimeConfig.mac", config.capabilities.mac),
            ("MAC in CNI_ARGS", args.mac),
        ])?,
        sticky: args.limpet_sticky.or(limpet.sticky),
    };
    Ok(Add { config, target, netns: PathBuf::from(&environment.netns), wanted })
}

/// The addresses that are asked for, in whichever way; IPv4 first.
fn addresses(config: &Config, args: &CniArgs) -> Result<Vec<IpAddr>, Failure> {
    let sorted = |ips: &Option<Vec<IpAddr>>| {
        let mut ips = ips.clone().filter(|ips| !ips.is_empty())?;
        ips.sort_unstable();
        ips.dedup();
        Some(ips)
    };
    let asked = agreed([
        ("runtimeConfig.ips", sorted(&config.capabilities.ips)),
        ("IP in CNI_ARGS", sorted(&args.ips)),
        ("args.limpet.ips", sorted(&config.args.limpet.ips)),
        ("args.cni.ips", sorted(&config.args.cni_ips)),
    ])?
    .unwrap_or_default();
    for family in [Family::V4, Family::V6] {
        if asked.iter().filter(|ip| Family::of(**ip) == family).count() > 1 {
            let message = format!(
                "several {family} addresses are asked for, at most one of a family is possible: {}",
                listed(&asked)
            );
            return Err(Failure::new(Code::Config, message));
        }
    }
    Ok(asked)
}

/// The value that was given, if all who gave one gave the same.
fn agreed<T: PartialEq + Shown, const N: usize>(
    given: [(&str, Option<T>); N],
) -> Result<Option<T>, Failure> {
    let mut first: Option<(&str, T)> = None;
    for (source, value) in given {
        match (&first, value) {
            (None, Some(value)) => first = Some((source, value)),
            (Some((other, one)), Some(two)) if *one != two => {
                let message = format!(
                    "{other} asks for {} and {source} for {}: give one, or both the same",
                    one.shown(),
                    two.shown()
                );
                return Err(Failure::new(Code::Config, message));
            }
            _ => {}
        }
    }
    Ok(first.map(|(_, value)| value))
}

/// What can be told of a value in an error.
trait Shown {
    fn shown(&self) -> String;
}

impl Shown for Vec<IpAddr> {
    fn shown(&self) -> String {
        listed(self)
    }
}

impl Shown for limpet_net_types::Mac {
    fn shown(&self) -> String {
        self.to_string()
    }
}

fn listed(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Environment {
    /// Takes the variables from `lookup`; one that is not set is as good as an empty one.
    pub(crate) fn read(mut lookup: impl FnMut(&str) -> Option<String>) -> Self {
        let mut take = |name: &str| lookup(name).unwrap_or_default();
        Self {
            command: take("CNI_COMMAND"),
            container_id: take("CNI_CONTAINERID"),
            netns: take("CNI_NETNS"),
            ifname: take("CNI_IFNAME"),
            args: take("CNI_ARGS"),
        }
    }

    /// Refuses the call, naming every variable that is missing.
    fn require(&self, netns: bool) -> Result<(), Failure> {
        let missing: Vec<_> = [
            ("CNI_CONTAINERID", self.container_id.is_empty()),
            ("CNI_NETNS", netns && self.netns.is_empty()),
            ("CNI_IFNAME", self.ifname.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let message = format!("{} needs what is not set: {}", self.command, missing.join(", "));
        Err(Failure::new(Code::Environment, message))
    }

    fn target(&self) -> Result<Target, Failure> {
        let wrong = |name: &str, reason: limpet_net_types::NameError| {
            Failure::new(Code::Environment, format!("{name}: {reason}"))
        };
        Ok(Target {
            container: self.container_id.parse().map_err(|e| wrong("CNI_CONTAINERID", e))?,
            ifname: self.ifname.parse().map_err(|e| wrong("CNI_IFNAME", e))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn environment(args: &str) -> Environment {
        let values = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", args),
        ];
        Environment::read(|name| {
            values.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    /// What ADD asks for with these fields beside the necessary ones.
    fn wanted(fields: &Value, args: &str) -> Result<Wanted, Failure> {
        let mut all = json!({"cniVersion": "1.0.0", "name": "pods"});
        for (field, value) in fields.as_object().unwrap() {
            all[field] = value.clone();
        }
        let Value::Object(all) = all else { unreachable!("it is an object") };
        match Request::read(Verb::Add, all, &environment(args))? {
            Request::Add(add) => Ok(add.wanted),
            other => unreachable!("ADD is read as {other:?}"),
        }
    }

    #[test]
    fn limpets_own_arguments_go_before_the_configurations_and_those_before_kubernetes() {
        let k8s = "K8S_POD_NAMESPACE=k;K8S_POD_NAME=k-0";
        let own = format!("{k8s};LIMPET_NAMESPACE=l;LIMPET_NAME=l-0");
        let args = json!({"args": {"limpet": {"namespace": "a", "name": "a-0"}}});
        let names = |fields: &Value, args: &str| {
            let wanted = wanted(fields, args).unwrap();
            format!(
                "{}/{}",
                wanted.namespace,
                wanted.name.as_ref().map_or("", |name| name.as_str())
            )
        };
        assert_eq!(names(&json!({}), ""), "_/");
        assert_eq!(names(&json!({}), k8s), "k/k-0");
        assert_eq!(names(&args, k8s), "a/a-0");
        assert_eq!(names(&args, &own), "l/l-0");
        assert_eq!(names(&json!({}), "K8S_POD_NAMESPACE=k;LIMPET_NAME=l-0"), "k/l-0");
    }

    #[test]
    fn sources_that_disagree_are_both_named() {
        let fields = json!({"runtimeConfig": {"ips": ["10.0.0.1"], "mac": "02:00:00:00:00:01"}});
        let refused = |args| wanted(&fields, args).unwrap_err();
        assert_eq!(
            refused("IP=10.0.0.2").message,
            "runtimeConfig.ips asks for 10.0.0.1 and IP in CNI_ARGS for 10.0.0.2: give one, or both the same"
        );
        assert_eq!(refused("IP=10.0.0.2").code, Code::Config);
        assert!(refused("MAC=02:00:00:00:00:02").message.starts_with("runtimeConfig.mac asks for"));
        let args = json!({"args": {"limpet": {"ips": ["fd00::1"]}, "cni": {"ips": ["fd00::2"]}}});
        assert!(
            wanted(&args, "").unwrap_err().message.starts_with("args.limpet.ips asks for fd00::1")
        );
    }

    #[test]
    fn sources_that_agree_are_one() {
        let fields = json!({
            "runtimeConfig": {"ips": ["fd00::1/64", "10.0.0.1"]},
            "args": {"limpet": {"ips": ["10.0.0.1/32", "fd00::1"]}, "cni": {"ips": []}},
        });
        let both: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(wanted(&fields, "IP=10.0.0.1,fd00::1").unwrap().addresses, both);
    }

    #[test]
    fn at_most_one_address_and_pool_of_a_family_is_asked_for() {
        let refused = |args| wanted(&json!({}), args).unwrap_err().message;
        assert_eq!(
            refused("IP=10.0.0.1,10.0.0.2"),
            "several IPv4 addresses are asked for, at most one of a family is possible: 10.0.0.1, 10.0.0.2"
        );
        assert!(refused("LIMPET_POOL=a,b,c").starts_with("3 pools are asked for"));
        let pools = |value: Value| wanted(&json!({"args": {"limpet": {"pool": value}}}), "");
        assert_eq!(pools(json!("a")).unwrap().pools, pools(json!(["a"])).unwrap().pools);
        assert!(pools(json!("a b")).unwrap_err().message.contains("`args.limpet.pool`"));
    }

    /// A piece of text that stands somewhere in a call.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            Just("c1".to_owned()),
            Just("K8S_POD_NAME=web-0".to_owned()),
            "[a-zA-Z0-9=;/ \u{e4}.:-]{0,12}",
        ]
    }

    proptest! {
        #[test]
        fn any_call_is_a_request_or_a_failure_and_del_never_minds_arguments(
            ids in (piece(), piece(), piece(), piece()),
            field in "[a-zA-Z.]{1,8}",
            value in piece(),
        ) {
            let environment = Environment {
                command: "ADD".to_owned(),
                container_id: ids.0,
                netns: ids.1,
                ifname: ids.2,
                args: ids.3,
            };
            let fields = json!({"cniVersion": "1.1.0", "name": "pods", "prevResult": {}, field: value});
            let Value::Object(fields) = fields else { unreachable!("it is an object") };
            for verb in [Verb::Add, Verb::Check, Verb::Status, Verb::Gc] {
                drop(Request::read(verb, fields.clone(), &environment));
            }
            let named = environment.target().is_ok();
            let unnamed = fields["name"] == "pods" && !fields.contains_key("network");
            if named && unnamed {
                prop_assert!(Request::read(Verb::Del, fields, &environment).is_ok());
            }
        }
    }
}
