//! Pure: the paths of the API; the controller's routes and every client are made of these.

use limpet_net_types::{
    ContainerId, HostName, IfName, Namespace, NetworkName, PoolName, Uid, WorkloadName,
};

use crate::book::AttachmentKey;

/// GET: the process runs.
pub const HEALTH: &str = "/healthz";
/// GET: the store is open and requests are served.
pub const READY: &str = "/readyz";
/// GET: all networks, `Listing<Network>`.
pub const NETWORKS: &str = "/v1/networks";
/// GET: all pools and their use, `Listing<PoolUse>`.
pub const POOLS: &str = "/v1/pools";
/// GET: all hosts and their state, `Listing<HostStatus>`.
pub const HOSTS: &str = "/v1/hosts";
/// GET: reservations, page by page, `Listing<Reservation>`; the query says which.
pub const RESERVATIONS: &str = "/v1/reservations";
/// GET: attachments, page by page, `Listing<Attachment>`; the query says which.
pub const ATTACHMENTS: &str = "/v1/attachments";
/// GET: all quotas and how much of them is used, `Listing<QuotaUse>`.
pub const QUOTAS: &str = "/v1/quotas";
/// GET: who had which address when, `History`; the query is a `HistoryQuery`.
pub const HISTORY: &str = "/v1/history";

/// GET: the store, as lines of a backup.
pub const BACKUP: &str = "/v1/backup";
/// POST: the store and hosts' kernels are checked; lines of `CheckLine`.
pub const CHECK: &str = "/v1/check";
/// POST: how hosts are, line by line.
pub const DOCTOR: &str = "/v1/doctor";
/// GET: whether a backup can be restored, is being, or was, and which hosts are waited for, `RestoreStatus`. POST: a
/// backup, which is restored; lines of `RestoreLine`. DELETE: a restore that broke off is discarded, as lines.
pub const RESTORE: &str = "/v1/restore";
/// POST: hosts that are not to be waited for after a restore, `RestoreStatus`.
pub const RESTORE_WAIVE: &str = "/v1/restore/waive";

/// The routes of the controller and the agent, with their parameters in braces.
pub mod route {
    /// GET, PUT, PATCH: one network, `Versioned<Network>`. DELETE: no content.
    pub const NETWORK: &str = "/v1/networks/{network}";
    /// GET, PUT, PATCH: one pool, `Versioned<PoolUse>`. DELETE: no content.
    pub const POOL: &str = "/v1/pools/{pool}";
    /// GET: who has which of its addresses, page by page, `Listing<Holding>`; the query is a `HoldingQuery`.
    pub const POOL_ADDRESSES: &str = "/v1/pools/{pool}/addresses";
    /// DELETE: some of its reservations that nobody holds, `PoolReleased`; the query is a `PoolRelease`.
    pub const POOL_RESERVATIONS: &str = "/v1/pools/{pool}/reservations";
    /// GET, PUT, PATCH: one host, `Versioned<HostStatus>`. DELETE: no content.
    pub const HOST: &str = "/v1/hosts/{host}";
    /// DELETE: some of the attachments of a host that is down, `Swept`; to be repeated while any are left.
    pub const HOST_ATTACHMENTS: &str = "/v1/hosts/{host}/attachments";
    /// GET, PUT, PATCH: one reservation, `Versioned<Reservation>`. DELETE: `Released`.
    pub const RESERVATION: &str = "/v1/reservations/{network}/{namespace}/{name}";
    /// POST: the reservation is for another name from now on, `Versioned<Reservation>`; the body is a `Rename`.
    pub const RESERVATION_RENAME: &str = "/v1/reservations/{network}/{namespace}/{name}/rename";
    /// GET: one attachment, `Versioned<Attachment>`. DELETE: `Released`; its host is asked, and ends it if it is gone.
    pub const ATTACHMENT: &str = "/v1/attachments/{host}/{network}/{container}/{ifname}";
    /// GET, PUT: the quota of a namespace, `Versioned<QuotaUse>`. DELETE: no content.
    pub const QUOTA: &str = "/v1/quotas/{namespace}";
    /// POST: a host joins, `Session`.
    pub const SESSION: &str = "/v1/hosts/{host}/session";
    /// POST: a host is alive; no content.
    pub const HEARTBEAT: &str = "/v1/hosts/{host}/heartbeat";
    /// GET: what a host must know, as it changes.
    pub const WATCH: &str = "/v1/hosts/{host}/watch";
    /// POST: a host says that an attachment it was asked about is there; no content.
    pub const ASK: &str = "/v1/hosts/{host}/asks/{uid}";
    /// POST: a host says what lives on it, `Reasserted`.
    pub const REASSERT: &str = "/v1/hosts/{host}/reassert";
    /// POST: a host says where its kernel differs from the store; no content.
    pub const REPORT: &str = "/v1/hosts/{host}/report";
    /// PUT: a host claims, `Claimed`. DELETE: it ends one of its attachments, `Ended`.
    pub const CLAIM: &str = "/v1/hosts/{host}/attachments/{network}/{container}/{ifname}";
    /// The agent's socket. PUT, GET, DELETE: the plugin attaches, checks, detaches.
    pub const SOCKET_ATTACHMENT: &str = "/v1/attachments/{network}/{container}/{ifname}";
    /// The agent's socket. POST: the interface is up.
    pub const SOCKET_CONFIRM: &str = "/v1/attachments/{network}/{container}/{ifname}/confirm";
    /// The agent's socket. POST: garbage collection.
    pub const SOCKET_GC: &str = "/v1/gc";
    /// The agent's socket. GET: whether ADD can be served.
    pub const SOCKET_READINESS: &str = "/v1/readiness/{network}";
    /// The agent's socket. GET: how things stand, `AgentStatus`.
    pub const SOCKET_STATUS: &str = "/v1/status";
    /// The agent's socket. GET: the commands that would make the kernel right.
    pub const SOCKET_PLAN: &str = "/v1/plan";
    /// The agent's socket. GET: how the host is, `CheckUp`.
    pub const SOCKET_CHECK: &str = "/v1/check-up";
    /// The agent's socket, and where it is told to listen. GET: what is counted, as text for Prometheus.
    pub const METRICS: &str = "/metrics";
}

/// The path of a network.
#[must_use]
pub fn network(name: &NetworkName) -> String {
    format!("{NETWORKS}/{name}")
}

/// The path of a pool.
#[must_use]
pub fn pool(name: &PoolName) -> String {
    format!("{POOLS}/{name}")
}

/// The path of who has which address of a pool.
#[must_use]
pub fn pool_addresses(name: &PoolName) -> String {
    format!("{POOLS}/{name}/addresses")
}

/// The path of all reservations of a pool, to release them.
#[must_use]
pub fn pool_reservations(name: &PoolName) -> String {
    format!("{POOLS}/{name}/reservations")
}

/// The path of a host.
#[must_use]
pub fn host(name: &HostName) -> String {
    format!("{HOSTS}/{name}")
}

/// The path of all attachments of a host, to end them.
#[must_use]
pub fn host_attachments(name: &HostName) -> String {
    format!("{HOSTS}/{name}/attachments")
}

/// The path of a reservation.
#[must_use]
pub fn reservation(network: &NetworkName, namespace: &Namespace, name: &WorkloadName) -> String {
    format!("{RESERVATIONS}/{network}/{namespace}/{name}")
}

/// The path at which a reservation gets another name.
#[must_use]
pub fn reservation_rename(
    network: &NetworkName,
    namespace: &Namespace,
    name: &WorkloadName,
) -> String {
    format!("{}/rename", reservation(network, namespace, name))
}

/// The path of the quota of a namespace.
#[must_use]
pub fn quota(namespace: &Namespace) -> String {
    format!("{QUOTAS}/{namespace}")
}

/// The path of an attachment, for operators.
#[must_use]
pub fn attachment(key: &AttachmentKey) -> String {
    let AttachmentKey { host, network, container, ifname } = key;
    format!("{ATTACHMENTS}/{host}/{network}/{container}/{}", segment(ifname.as_str()))
}

/// The path at which a host joins.
#[must_use]
pub fn session(host: &HostName) -> String {
    format!("{HOSTS}/{host}/session")
}

/// The path at which a host says that it is alive.
#[must_use]
pub fn heartbeat(host: &HostName) -> String {
    format!("{HOSTS}/{host}/heartbeat")
}

/// The path of a host's watch, without its query.
#[must_use]
pub fn watch(host: &HostName) -> String {
    format!("{HOSTS}/{host}/watch")
}

/// The path of a question to a host.
#[must_use]
pub fn ask(host: &HostName, uid: Uid) -> String {
    format!("{HOSTS}/{host}/asks/{uid}")
}

/// The path at which a host says what lives on it.
#[must_use]
pub fn reassert(host: &HostName) -> String {
    format!("{HOSTS}/{host}/reassert")
}

/// The path at which a host says where its kernel differs from the store.
#[must_use]
pub fn report(host: &HostName) -> String {
    format!("{HOSTS}/{host}/report")
}

/// The path at which a host claims and ends an attachment.
#[must_use]
pub fn claim(key: &AttachmentKey) -> String {
    let AttachmentKey { host, network, container, ifname } = key;
    format!("{HOSTS}/{host}/attachments/{network}/{container}/{}", segment(ifname.as_str()))
}

/// The path of an attachment on the agent's socket.
#[must_use]
pub fn socket_attachment(
    network: &NetworkName,
    container: &ContainerId,
    ifname: &IfName,
) -> String {
    format!("{ATTACHMENTS}/{network}/{container}/{}", segment(ifname.as_str()))
}

/// The path of the readiness of a network on the agent's socket.
#[must_use]
pub fn socket_readiness(network: &NetworkName) -> String {
    format!("/v1/readiness/{network}")
}

/// Percent-encodes what cannot stand in a path's segment (RFC 3986, section 3.3).
///
/// Of all names only an interface's may have such characters, and only ASCII ones.
pub(crate) fn segment(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_stays_one_segment() {
        let path = |ifname: &str| {
            socket_attachment(
                &"n".parse().unwrap(),
                &"c".parse().unwrap(),
                &ifname.parse().unwrap(),
            )
        };
        assert_eq!(path("eth0"), "/v1/attachments/n/c/eth0");
        assert_eq!(path("a?b%#"), "/v1/attachments/n/c/a%3Fb%25%23");
    }
}
