//! Pure: how hosts are: what each says of itself, and what `limpetctl doctor` asks for.

use std::net::IpAddr;

use limpet_net_types::HostName;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::living::Finding;
use crate::{ApiError, Span};

/// How a host is, as its agent says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The agent's version.
    pub version: String,
    /// The kernel's release, such as `6.18.4`.
    #[serde(default)]
    pub kernel: String,
    /// For how long the agent has run.
    #[serde(default)]
    pub running: Span,
    /// Where VXLAN packets come from and go to, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<IpAddr>,
    /// The MTU of the device that carries them, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_mtu: Option<u32>,
    /// The UDP ports of the networks' devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Its conditions, the worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What its last pass could not do and what cannot be laid out, as sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// How many containers are off the network because their addresses are another's.
    #[serde(default)]
    pub severed: u64,
    /// How often others changed what is limpet's, by kind, since the agent started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<DriftCount>,
    /// The last such changes, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drifted: Vec<Drifted>,
}

/// How often something of limpet's was changed by others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftCount {
    /// What, such as `route`.
    pub kind: String,
    /// How often since the agent started.
    pub count: u64,
}

/// One change by others that was put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drifted {
    /// What was changed, such as `route`.
    pub kind: String,
    /// The command that put it right.
    pub what: String,
    /// How often.
    pub times: u64,
    /// How long ago the last time was.
    pub ago: Span,
}

/// What a host's own socket answers to `limpet-agent check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckUp {
    /// How the host is.
    pub health: Health,
    /// The commands that would make the kernel right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
    /// Why they are not known, if they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// Which hosts to ask how they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoctorRequest {
    /// These; all that have joined if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostName>,
}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoctorLine {
    /// What is being done: for people who wait.
    Doing(String),
    /// How a host is.
    Host {
        /// The host.
        host: HostName,
        /// How it is; none of an agent whose version does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        health: Option<Box<Health>>,
        /// Where its kernel differs from the store.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        findings: Vec<Finding>,
        /// How many more differences there are.
        #[serde(default)]
        more: u64,
    },
    /// A host did not answer.
    Unanswered(HostName),
    /// All hosts were asked.
    Done,
    /// It broke off.
    Failed(ApiError),
}
