//! Pure: what ADD answers, in the form of each version of the specification, and the results of other plugins.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use limpet_api::socket::Attach;
use limpet_net_types::{Family, Prefix};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::Version;
use crate::error::{Code, Failure};
use crate::part::{self, Part, Parts};

/// What the kernel calls the scope of a route whose destination is on the link.
const SCOPE_LINK: u32 = 253;

/// A result, of any version: what the older ones do not have is absent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct CniResult {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) ips: Vec<Ip>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Map<String, Value>,
}

/// An interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: String,
    pub(crate) mtu: Option<u32>,
    /// The namespace that it is in; the host's own if empty.
    pub(crate) sandbox: String,
    pub(crate) socket_path: String,
    #[serde(rename = "pciID")]
    pub(crate) pci_id: String,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Ip {
    pub(crate) address: IpNetwork,
    #[serde(default)]
    pub(crate) gateway: Option<IpAddr>,
    /// The place of its interface in the list.
    #[serde(default)]
    pub(crate) interface: Option<usize>,
}

/// A route of a result.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNetwork,
    #[serde(default)]
    pub(crate) gw: Option<IpAddr>,
    #[serde(default)]
    pub(crate) mtu: Option<u32>,
    #[serde(default)]
    pub(crate) advmss: Option<u32>,
    #[serde(default)]
    pub(crate) priority: Option<u32>,
    #[serde(default)]
    pub(crate) table: Option<u32>,
    #[serde(default)]
    pub(crate) scope: Option<u32>,
}

impl CniResult {
    /// Reads another plugin's result, of whichever version.
    pub(crate) fn read(value: &Value) -> Result<Self, Failure> {
        Self::deserialize(value).map_err(|error| {
            Failure::new(Code::Config, format!("field `prevResult` is no result: {error}"))
        })
    }

    /// Adds what was attached: both ends of the veth pair, the addresses, and the routes inside.
    ///
    /// Tables of its own are not among them: before version 1.1.0 they would be taken for the main table.
    pub(crate) fn add(&mut self, (attach, parts): (&Attach, Parts), ifname: &str, netns: &str) {
        let inside = self.interfaces.len() + 1;
        self.interfaces.push(Interface {
            name: attach.host_ifname.clone(),
            mac: attach.gateway_mac.to_string(),
            mtu: Some(attach.mtu.into()),
            ..Interface::default()
        });
        self.interfaces.push(Interface {
            name: ifname.to_owned(),
            mac: attach.attachment.mac.to_string(),
            mtu: Some(attach.mtu.into()),
            sandbox: netns.to_owned(),
            ..Interface::default()
        });
        for address in attach.attachment.addresses.iter().map(|held| held.address) {
            let gateway = gateway_of(attach, Family::of(address));
            self.ips.push(Ip { address: address.into(), gateway, interface: Some(inside) });
        }
        for gateway in attach.gateways.iter().copied() {
            let family = Family::of(gateway);
            let part = parts.of(family);
            if let (Part::Everything, Some(way)) = (part, part::way_to(0, gateway)) {
                let scope = Some(SCOPE_LINK);
                self.routes.push(Route { scope, ..Route::new(way.destination.into(), None) });
            }
            let ways = part::ways_by(attach, 0, (family, part)).into_iter();
            self.routes.extend(ways.map(|way| Route::new(way.destination.into(), Some(gateway))));
        }
    }

    /// Replaces the name servers by those of the configuration, if it names any.
    pub(crate) fn set_dns(&mut self, dns: Option<&Map<String, Value>>) {
        if let Some(dns) = dns {
            self.dns.clone_from(dns);
        }
    }

    /// The result as JSON, in the form of `version`.
    pub(crate) fn render(&self, version: Version) -> Value {
        let mut result = json!({"cniVersion": version.as_str()});
        let interfaces: Vec<_> = self.interfaces.iter().map(|i| i.render(version)).collect();
        let ips: Vec<_> = self.ips.iter().map(|ip| ip.render(version)).collect();
        let routes: Vec<_> = self.routes.iter().map(|route| route.render(version)).collect();
        for (key, list) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
            if !list.is_empty() {
                result[key] = list.into();
            }
        }
        if !self.dns.is_empty() {
            result["dns"] = self.dns.clone().into();
        }
        result
    }
}

impl Interface {
    fn render(&self, version: Version) -> Value {
        let mut value = json!({"name": self.name});
        let newest = version >= Version::V1_1_0;
        put(&mut value, "mac", !self.mac.is_empty(), self.mac.as_str());
        put(&mut value, "sandbox", !self.sandbox.is_empty(), self.sandbox.as_str());
        put(&mut value, "mtu", newest && self.mtu.is_some(), self.mtu);
        put(
            &mut value,
            "socketPath",
            newest && !self.socket_path.is_empty(),
            self.socket_path.as_str(),
        );
        put(&mut value, "pciID", newest && !self.pci_id.is_empty(), self.pci_id.as_str());
        value
    }
}

impl Ip {
    fn render(&self, version: Version) -> Value {
        let mut value = json!({"address": self.address.to_string()});
        let family = if self.address.is_ipv4() { "4" } else { "6" };
        put(&mut value, "version", version < Version::V1_0_0, family);
        put(&mut value, "interface", self.interface.is_some(), self.interface);
        put(&mut value, "gateway", self.gateway.is_some(), self.gateway.map(|ip| ip.to_string()));
        value
    }
}

impl Route {
    fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    fn render(&self, version: Version) -> Value {
        let mut value = json!({"dst": self.dst.to_string()});
        put(&mut value, "gw", self.gw.is_some(), self.gw.map(|ip| ip.to_string()));
        for (key, number) in [
            ("mtu", self.mtu),
            ("advmss", self.advmss),
            ("priority", self.priority),
            ("table", self.table),
            ("scope", self.scope),
        ] {
            put(&mut value, key, version >= Version::V1_1_0 && number.is_some(), number);
        }
        value
    }
}

fn put(object: &mut Value, key: &str, given: bool, value: impl Into<Value>) {
    if given {
        object[key] = value.into();
    }
}

/// The gateway of a family among the attachment's.
pub(crate) fn gateway_of(attach: &Attach, family: Family) -> Option<IpAddr> {
    attach.gateways.iter().copied().find(|gateway| Family::of(*gateway) == family)
}

/// All addresses of the gateway's family.
pub(crate) fn everywhere(gateway: IpAddr) -> Prefix {
    Prefix::containing(gateway, 0)
}
