//! Pure: the records of the store that are nobody's answer: who holds an address, whose session
//! a host's is. All others are stored as the API shows them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use limpet_api::FleetTime;
use limpet_api::Span;
use limpet_api::book::AttachmentRef;
use limpet_net_types::{Mac, Namespace, Prefix, Token, WorkloadName};
use serde::{Deserialize, Serialize};

/// Who has an address: a reservation, an attachment, both, or neither since a short while ago.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot {
    /// The name that keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reservation: Option<Owner>,
    /// The attachment that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) attachment: Option<AttachmentRef>,
    /// When it was given up by its last owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) released: Option<FleetTime>,
}

/// The name that an address is reserved for, within the address's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The workload's namespace.
    pub(crate) namespace: Namespace,
    /// The workload's name.
    pub(crate) name: WorkloadName,
}

/// Whether an address can be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vacancy {
    /// Nobody has it.
    Free,
    /// Nobody has it, but somebody had it at this time, not long ago.
    Cooling(FleetTime),
    /// A reservation or an attachment has it.
    Taken,
}

impl Slot {
    /// Whether a reservation or an attachment has the address.
    pub(crate) fn is_taken(&self) -> bool {
        self.reservation.is_some() || self.attachment.is_some()
    }

    /// Whether it can be given out at `now`, in a pool with this cool-down.
    pub(crate) fn vacancy(&self, now: FleetTime, cooldown: Span) -> Vacancy {
        match self.released {
            _ if self.is_taken() => Vacancy::Taken,
            Some(released) if now < released.plus(cooldown) => Vacancy::Cooling(released),
            _ => Vacancy::Free,
        }
    }
}

/// The MAC address of an interface whose IPv4 address this is, where nobody asked for another: it is
/// unique in a network as the address is.
pub(crate) fn mac_of_v4(address: Ipv4Addr) -> Option<Mac> {
    let [a, b, c, d] = address.octets();
    Mac::new([0x02, 0x4c, a, b, c, d]).ok()
}

/// The IPv4 address whose interface has this MAC address where nobody asked for another.
pub(crate) fn v4_of_mac(mac: Mac) -> Option<Ipv4Addr> {
    let [0x02, 0x4c, a, b, c, d] = mac.bytes() else { return None };
    Some([a, b, c, d].into())
}

/// How many superseded boots a session remembers: enough to know a copied machine that comes
/// back after the original was started again a few times.
const SUPERSEDED: usize = 16;

/// The session of a host's agent; every transaction in the host's name compares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Alive {
    /// What the agent's requests carry.
    pub(crate) session: Token,
    /// The installation.
    pub(crate) install: Token,
    /// The boot.
    pub(crate) boot: Token,
    /// Earlier boots of this installation, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) superseded: Vec<Token>,
    /// The prefixes on the host's own links.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) on_link: BTreeSet<Prefix>,
    /// The agent's version.
    pub(crate) version: String,
}

impl Alive {
    /// Returns the boots that may not come back once `boot` has joined after this session.
    pub(crate) fn superseded_by(&self, boot: Token) -> Vec<Token> {
        let mut superseded = self.superseded.clone();
        if self.boot != boot {
            superseded.push(self.boot);
        }
        let surplus = superseded.len().saturating_sub(SUPERSEDED);
        superseded.split_off(surplus)
    }
}

/// Which controller hears a host's agent; it goes with that controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heard {
    /// The session in which it was heard.
    pub(crate) session: Token,
    /// The controller's process.
    pub(crate) replica: Token,
}

/// No controller has heard a host's agent for a lease. It may live all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Silent {
    /// When that was noticed.
    pub(crate) since: FleetTime,
    /// The session that it had then.
    pub(crate) session: Token,
}
