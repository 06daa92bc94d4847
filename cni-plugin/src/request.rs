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
            Verb::Version | Verb::Gc => {
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
