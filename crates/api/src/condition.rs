//! Pure: conditions: what others did to a host, or what it is, that keeps or may keep packets from their way.

use serde::{Deserialize, Serialize};

/// How bad a condition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know; nothing is wrong.
    Note,
    /// Something may break, or breaks under circumstances.
    Risk,
    /// Packets are lost now, or containers cannot start.
    Broken,
}

impl Severity {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Risk => "risk",
            Self::Broken => "broken",
        }
    }
}

/// Whether limpet mends a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mending {
    /// It cannot: an operator must.
    ByHand,
    /// It would, if the agent were started with `--mend` and the condition's code.
    IfAsked,
    /// It does.
    ByLimpet,
}

impl Mending {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ByHand => "by-hand",
            Self::IfAsked => "if-asked",
            Self::ByLimpet => "by-limpet",
        }
    }
}

/// One thing about a host that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Which one.
    pub code: ConditionCode,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, where there can be several: a chain, a device, a setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// What was found, with its value, as a clause.
    pub what: String,
    /// What that breaks, as a clause.
    pub breaks: String,
    /// What to do, as a clause.
    pub remedy: String,
    /// Whether limpet mends it.
    pub mending: Mending,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Which condition; the name on the wire never changes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum ConditionCode {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
            /// One that this version does not know: the host's is newer.
            #[serde(rename = "unknown", other)]
            Unknown,
        }

        impl ConditionCode {
            /// All that this version knows.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Unknown => "unknown",
                }
            }
        }
    };
}

codes! {
    /// The chain FORWARD of iptables drops the overlay's packets.
    ForwardPolicy = "forward-policy",
    /// A chain of nftables at the hook forward drops them.
    ForwardFilter = "forward-filter",
    /// A chain at the hook input drops VXLAN's own packets.
    VxlanPortFiltered = "vxlan-port-filtered",
    /// Rules of other programs could not be read.
    FiltersUnread = "filters-unread",
    /// firewalld runs.
    Firewalld = "firewalld",
    /// Somebody undoes something of limpet's again and again.
    Contested = "contested",
    /// Another VXLAN device has a network's VNI.
    VniTaken = "vni-taken",
    /// Another VXLAN device has the UDP port and reads it otherwise.
    VxlanPortTaken = "vxlan-port-taken",
    /// Another VXLAN device has the UDP port too.
    VxlanPortShared = "vxlan-port-shared",
    /// systemd-networkd runs and was not told to leave foreign routes alone.
    NetworkdForeignRoutes = "networkd-foreign-routes",
    /// systemd-networkd configures a device of limpet's.
    NetworkdDevice = "networkd-device",
    /// `NetworkManager` runs and was not told to leave limpet's devices alone.
    NetworkManagerUntold = "networkmanager-untold",
    /// `NetworkManager` manages a device of limpet's.
    NetworkManagerDevice = "networkmanager-device",
    /// IPv6 is switched off.
    Ipv6Disabled = "ipv6-disabled",
    /// The underlay's MTU is below what a network needs.
    UnderlayMtu = "underlay-mtu",
    /// The kernel's table of neighbours overflows.
    NeighbourTableFull = "neighbour-table-full",
    /// The kernel's table of connections is full, or nearly.
    ConnectionTableFull = "connection-table-full",
    /// The wall clock jumped.
    ClockJumped = "clock-jumped",
    /// Changes of the kernel were not heard of.
    NotificationsLost = "notifications-lost",
    /// Several default routes lead out by different devices.
    UnderlayAmbiguous = "underlay-ambiguous",
    /// The default route comes from router advertisements, which the kernel ignores.
    RouterAdvertisementsIgnored = "router-advertisements-ignored",
    /// The kernel is older than what limpet needs, or would use.
    KernelOld = "kernel-old",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_on_the_wire_what_it_is_called() {
        for code in ConditionCode::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{}\"", code.as_str()));
            assert_eq!(serde_json::from_str::<ConditionCode>(&json).unwrap(), *code);
            assert!(code.as_str().bytes().all(|b| b == b'-' || b.is_ascii_alphanumeric()));
        }
        let unknown: ConditionCode = serde_json::from_str("\"of-tomorrow\"").unwrap();
        assert_eq!(unknown, ConditionCode::Unknown);
    }

    #[test]
    fn the_worst_is_the_greatest() {
        assert!(Severity::Broken > Severity::Risk && Severity::Risk > Severity::Note);
        for severity in [Severity::Note, Severity::Risk, Severity::Broken] {
            let json = serde_json::to_string(&severity).unwrap();
            assert_eq!(json, format!("\"{}\"", severity.as_str()));
        }
        for mending in [Mending::ByHand, Mending::IfAsked, Mending::ByLimpet] {
            let json = serde_json::to_string(&mending).unwrap();
            assert_eq!(json, format!("\"{}\"", mending.as_str()));
        }
    }
}
