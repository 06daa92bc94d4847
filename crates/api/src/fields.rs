//! Pure: attachments as they are written: with the parts of their key beside the other fields.
//!
//! Flattening would say the same in fewer words, but it first reads a record into a tree, and a
//! controller reads millions of these when it starts.

use limpet_net_types::{
    ContainerId, HostName, IfName, Mac, Namespace, NetworkName, RuntimeName, Token, Uid,
    WorkloadName,
};
use serde::{Deserialize, Serialize};

use crate::book::{Addresses, Attachment, AttachmentKey, AttachmentRef};
use crate::{FleetTime, WallTime};

/// An [`AttachmentRef`].
#[derive(Serialize, Deserialize)]
pub(crate) struct RefFields {
    host: HostName,
    network: NetworkName,
    container: ContainerId,
    ifname: IfName,
    uid: Uid,
}

impl From<RefFields> for AttachmentRef {
    fn from(fields: RefFields) -> Self {
        let RefFields { host, network, container, ifname, uid } = fields;
        Self { key: AttachmentKey { host, network, container, ifname }, uid }
    }
}

impl From<AttachmentRef> for RefFields {
    fn from(reference: AttachmentRef) -> Self {
        let AttachmentRef { key: AttachmentKey { host, network, container, ifname }, uid } =
            reference;
        Self { host, network, container, ifname, uid }
    }
}

/// An [`Attachment`].
#[derive(Serialize, Deserialize)]
pub(crate) struct Fields {
    host: HostName,
    network: NetworkName,
    container: ContainerId,
    ifname: IfName,
    uid: Uid,
    boot: Token,
    namespace: Namespace,
    name: WorkloadName,
    sticky: bool,
    addresses: Addresses,
    mac: Mac,
    runtime: RuntimeName,
    netns: Box<str>,
    created: FleetTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_wall: Option<WallTime>,
}

impl From<Fields> for Attachment {
    fn from(fields: Fields) -> Self {
        let Fields { host, network, container, ifname, .. } = fields;
        Self {
            key: AttachmentKey { host, network, container, ifname },
            uid: fields.uid,
            boot: fields.boot,
            namespace: fields.namespace,
            name: fields.name,
            sticky: fields.sticky,
            addresses: fields.addresses,
            mac: fields.mac,
            runtime: fields.runtime,
            netns: fields.netns,
            created: fields.created,
            created_wall: fields.created_wall,
        }
    }
}

impl From<Attachment> for Fields {
    fn from(attachment: Attachment) -> Self {
        let AttachmentKey { host, network, container, ifname } = attachment.key;
        Self {
            host,
            network,
            container,
            ifname,
            uid: attachment.uid,
            boot: attachment.boot,
            namespace: attachment.namespace,
            name: attachment.name,
            sticky: attachment.sticky,
            addresses: attachment.addresses,
            mac: attachment.mac,
            runtime: attachment.runtime,
            netns: attachment.netns,
            created: attachment.created,
            created_wall: attachment.created_wall,
        }
    }
}
