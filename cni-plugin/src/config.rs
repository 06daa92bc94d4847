//! Pure: the network configuration on standard input.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use limpet_net_types::{Mac, Namespace, NetworkName, PoolName, RuntimeName, WorkloadName};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Map, Value};

use crate::bandwidth::Bandwidth;
use crate::error::{Code, Failure};

/// Where the host's agent listens unless the configuration says otherwise.
const SOCKET: &str = "/run/limpet/agent.sock";

/// How long one call may take unless the configuration says otherwise.
///
/// A claim waits up to 5 s for another host to give an address up, and some seconds more while the agent
/// finds a controller that answers; the kubelet gives up on a pod after 2 to 4 minutes and should hear why.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How much of a value is shown when it is refused, in characters.
const SHOWN: usize = 200;

/// Fields that the specification gives to runtimes, which say nothing to a plugin, or nothing to this one.
const IGNORED: [&str; 6] =
    ["cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "capabilities", "type"];

/// A version of the specification that limpet speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// All, oldest first.
    pub(crate) const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest: what is spoken to somebody who did not say.
    pub(crate) const NEWEST: Self = Self::V1_1_0;

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    pub(crate) fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

/// How strictly a configuration is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// What is not understood is refused.
    Strict,
    /// What is not understood is passed over, for DEL: the configuration may have been changed since ADD, and
    /// a DEL that fails keeps the runtime from cleaning up.
    Lenient,
}

/// A configuration, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) version: Version,
    pub(crate) network: NetworkName,
    pub(crate) socket: PathBuf,
    pub(crate) timeout: Duration,
    pub(crate) runtime: RuntimeName,
    /// What `args.limpet` and `args.cni` ask for.
    pub(crate) args: Args,
    /// What `runtimeConfig` asks for.
    pub(crate) capabilities: Capabilities,
    /// What `runtimeConfig` allows, and where it says nothing the configuration.
    pub(crate) bandwidth: Bandwidth,
    /// Whether the interface is to have the container's default route; where there is none yet if left out.
    pub(crate) default_route: Option<bool>,
    /// `dns`, to be passed on.
    pub(crate) dns: Option<Map<String, Value>>,
    pub(crate) prev_result: Option<Value>,
    /// The attachments that the runtime still knows of; only GC is told.
    pub(crate) valid: Option<Vec<Valid>>,
}

/// What the configuration's `args` ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) limpet: LimpetArgs,
    /// `args.cni.ips`.
    pub(crate) cni_ips: Option<Vec<IpAddr>>,
}

/// `args.limpet`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LimpetArgs {
    pub(crate) namespace: Option<Namespace>,
    pub(crate) name: Option<WorkloadName>,
    pub(crate) pools: Option<Vec<PoolName>>,
    pub(crate) ips: Option<Vec<IpAddr>>,
    pub(crate) sticky: Option<bool>,
}

/// `runtimeConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) ips: Option<Vec<IpAddr>>,
    pub(crate) mac: Option<Mac>,
    pub(crate) bandwidth: Bandwidth,
}

/// An attachment that the runtime still knows of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Valid {
    #[serde(rename = "containerID")]
    pub(crate) container: String,
    pub(crate) ifname: String,
}

/// What level of log goes to standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Error,
    #[default]
    Warn,
    Info,
    Debug,
}

/// The version that a configuration is written in, whatever else is wrong with it.
pub(crate) fn version_of(config: &Map<String, Value>) -> Result<Version, Failure> {
    let Some(text) = config.get("cniVersion") else {
        return Err(Failure::new(Code::Config, "field `cniVersion` is missing"));
    };
    text.as_str().and_then(Version::of).ok_or_else(|| {
        let known = Version::ALL.map(Version::as_str).join(", ");
        let shown = shown(text);
        let message = format!("cniVersion {shown} is not supported: limpet speaks {known}");
        Failure::new(Code::Version, message)
    })
}

/// The level of log that a configuration asks for, whatever else is wrong with it.
pub(crate) fn log_level(config: &Map<String, Value>) -> LogLevel {
    config.get("logLevel").and_then(|level| LogLevel::deserialize(level).ok()).unwrap_or_default()
}

impl Config {
    /// Reads a configuration.
    pub(crate) fn read(fields: Map<String, Value>, reading: Reading) -> Result<Self, Failure> {
        let version = match version_of(&fields) {
            // DEL prints nothing, so no version can be wrong for it.
            Err(_) if reading == Reading::Lenient => Version::NEWEST,
            other => other?,
        };
        let mut fields = Fields { left: fields, at: "", reading };
        let name: Option<String> = fields.take("name")?;
        let network = match fields.take("network")? {
            Some(network) => network,
            None => network_of(name)?,
        };
        let timeout = fields.take("timeout")?.map_or(TIMEOUT, |Timeout(timeout)| timeout);
        fields.take::<LogLevel>("logLevel")?;
        let (args, capabilities) = (args(&mut fields)?, capabilities(&mut fields)?);
        let of_all: Bandwidth = fields.take("bandwidth")?.unwrap_or_default();
        let config = Self {
            version,
            network,
            socket: fields.take("socket")?.map_or_else(|| SOCKET.into(), |Absolute(path)| path),
            timeout,
            runtime: fields.take("runtime")?.unwrap_or_default(),
            args,
            bandwidth: capabilities.bandwidth.or(of_all),
            capabilities,
            default_route: fields.take("defaultRoute")?,
            dns: fields.take("dns")?,
            prev_result: fields.take("prevResult")?,
            valid: valid(&mut fields)?,
        };
        fields.refuse_nat_and_ipam()?;
        fields.left.remove("cniVersion");
        fields.left.retain(|field, _| {
            !IGNORED.contains(&field.as_str()) && !field.starts_with("cni.dev/")
        });
        fields.finish()?;
        Ok(config)
    }
}

/// The network is called as the configuration, unless that could not be one's name.
fn network_of(name: Option<String>) -> Result<NetworkName, Failure> {
    let name = name.ok_or_else(|| Failure::new(Code::Config, "field `name` is missing"))?;
    name.parse().map_err(|error| {
        let message = format!("field `name`: {error}; name limpet's network in field `network`");
        Failure::new(Code::Config, message)
    })
}

fn args(fields: &mut Fields) -> Result<Args, Failure> {
    let mut args = Args::default();
    // Other plugins' arguments share the object and are none of limpet's business.
    let mut all: BTreeMap<String, Value> = fields.take("args")?.unwrap_or_default();
    if let Some(value) = all.remove("limpet") {
        let mut inner = fields.inner("args.limpet.", value)?;
        args.limpet = LimpetArgs {
            namespace: inner.take("namespace")?,
            name: inner.take("name")?,
            pools: inner.take("pool")?.map(|Pools(pools)| pools),
            ips: inner.take("ips")?.map(|Ips(ips)| ips),
            sticky: inner.take("sticky")?,
        };
        inner.finish()?;
    }
    if let Some(value) = all.remove("cni") {
        let mut inner = fields.inner("args.cni.", value)?;
        args.cni_ips = inner.take("ips")?.map(|Ips(ips)| ips);
    }
    Ok(args)
}

fn capabilities(fields: &mut Fields) -> Result<Capabilities, Failure> {
    let Some(value) = fields.take("runtimeConfig")? else { return Ok(Capabilities::default()) };
    let mut inner = fields.inner("runtimeConfig.", value)?;
    let asked = Capabilities {
        ips: inner.take("ips")?.map(|Ips(ips)| ips),
        mac: inner.take("mac")?,
        bandwidth: inner.take("bandwidth")?.unwrap_or_default(),
    };
    // A capability that the operator declared for limpet by mistake asks for nothing while it is empty.
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    inner.left.retain(|_, value| !is_empty(value));
    inner.finish()?;
    Ok(asked)
}

/// The runtimes' library sends the list under two names, one of which it misspelt at first. What either
/// has is valid.
fn valid(fields: &mut Fields) -> Result<Option<Vec<Valid>>, Failure> {
    let mut all: Option<Vec<Valid>> = None;
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        if let Some(found) = fields.left.get(key) {
            // A list with nothing in it arrives as `null` from programs written in Go.
            let found: Option<Vec<Valid>> =
                Option::deserialize(found).map_err(|error| wrong("", key, found, &error))?;
            all.get_or_insert_default().extend(found.unwrap_or_default());
        }
    }
    Ok(all)
}

/// The fields of an object, taken one by one; what is left at the end is unknown.
struct Fields {
    left: Map<String, Value>,
    /// What stands before a field's name where it is told.
    at: &'static str,
    reading: Reading,
}

impl Fields {
    /// Takes a field; `null` is as good as none.
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, Failure> {
        let Some(value) = self.left.remove(key).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        match T::deserialize(&value) {
            Ok(taken) => Ok(Some(taken)),
            // Without the name nothing can be found; all else has a default.
            Err(_) if self.reading == Reading::Lenient && (self.at, key) != ("", "name") => {
                Ok(None)
            }
            Err(error) => Err(wrong(self.at, key, &value, &error)),
        }
    }

    /// The fields of an object inside.
    fn inner(&self, at: &'static str, value: Value) -> Result<Self, Failure> {
        let fields = match (value, self.reading) {
            (Value::Object(fields), _) => fields,
            (_, Reading::Lenient) => Map::new(),
            (value, Reading::Strict) => {
                let at = at.trim_end_matches('.');
                let message = format!("field `{at}` is {}, which is no object", shown(&value));
                return Err(Failure::new(Code::Config, message));
            }
        };
        Ok(Self { left: fields, at, reading: self.reading })
    }

    fn refuse_nat_and_ipam(&mut self) -> Result<(), Failure> {
        let masquerade = self.left.remove("ipMasq").unwrap_or_default();
        let ipam = self.left.remove("ipam").unwrap_or_default();
        if self.reading == Reading::Lenient {
            return Ok(());
        }
        if !matches!(masquerade, Value::Null | Value::Bool(false)) {
            let shown = shown(&masquerade);
            let message = format!(
                "field `ipMasq` is {shown}: limpet translates no address, a network's egress decides"
            );
            return Err(Failure::new(Code::Field, message));
        }
        if !matches!(&ipam, Value::Null) && ipam != Value::Object(Map::new()) {
            let message = format!(
                "field `ipam` is {}: the controller gives the addresses, from the network's pools",
                shown(&ipam)
            );
            return Err(Failure::new(Code::Field, message));
        }
        Ok(())
    }

    /// Refuses what is left.
    fn finish(self) -> Result<(), Failure> {
        match self.left.into_iter().next() {
            Some((key, value)) if self.reading == Reading::Strict => {
                let message =
                    format!("unsupported field `{}{key}` with value {}", self.at, shown(&value));
                Err(Failure::new(Code::Field, message))
            }
            _ => Ok(()),
        }
    }
}

fn wrong(at: &str, key: &str, value: &Value, error: &serde_json::Error) -> Failure {
    let message = format!("field `{at}{key}` is {}: {error}", shown(value));
    Failure::new(Code::Config, message)
}

/// A value as it is told, cut where it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Seconds, 1 to 600.
struct Timeout(Duration);

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(from)?;
        if (1.0..=600.0).contains(&seconds) {
            Ok(Self(Duration::from_secs_f64(seconds)))
        } else {
            Err(D::Error::custom("a timeout is 1 to 600 seconds"))
        }
    }
}

/// A path that does not depend on where the runtime runs.
struct Absolute(PathBuf);

impl<'de> Deserialize<'de> for Absolute {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let path = PathBuf::deserialize(from)?;
        if path.is_absolute() {
            Ok(Self(path))
        } else {
            Err(D::Error::custom("the path must be absolute"))
        }
    }
}

/// Addresses, with or without the length of a prefix, which says nothing here: limpet's are /32 and /128.
struct Ips(Vec<IpAddr>);

impl<'de> Deserialize<'de> for Ips {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let parsed: Result<_, _> = texts.iter().map(|text| address(text)).collect();
        parsed.map(Self).map_err(D::Error::custom)
    }
}

/// One pool or several.
struct Pools(Vec<PoolName>);

impl<'de> Deserialize<'de> for Pools {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        let many = if value.is_array() { value } else { Value::Array(vec![value]) };
        Vec::deserialize(many).map(Self).map_err(D::Error::custom)
    }
}

/// Reads an address, with or without the length of a prefix.
pub(crate) fn address(text: &str) -> Result<IpAddr, String> {
    let network: IpNetwork =
        text.trim().parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    Ok(network.ip())
}
