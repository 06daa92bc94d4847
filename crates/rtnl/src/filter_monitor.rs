//! Edge: hearing that something of nftables changed, no more exactly than is needed to look again.

use netlink_proto::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::monitor::{BUFFER, MonitorError, is_errno};
use crate::news::messages;
use crate::wire::{Attributes, text_of};

const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u8 = 10;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_NEWGEN: u8 = 15;
/// The header of a netfilter message: family, version, resource.
const NFGENMSG: usize = 4;
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_TYPE: u16 = 7;

/// What was heard of nftables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FilterEvent {
    /// A chain of type `nat` was made in whichever table, or was said once more: some programs do that each time that
    /// they change anything.
    Translation,
    /// Something of the table was made, changed or deleted, or changes were lost.
    Table,
}

/// Listens to the changes of one nftables table, and to new chains that translate addresses, in whichever table.
pub struct FilterMonitor {
    socket: TokioSocket,
    table: String,
}

impl FilterMonitor {
    /// Listens in the calling thread's network namespace to the tables called `table`, of any family.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Socket`]; also where the kernel has no nftables.
    pub fn open(table: &str) -> Result<Self, MonitorError> {
        let mut socket = TokioSocket::new(protocols::NETLINK_NETFILTER)?;
        let inner = socket.socket_mut();
        let _ = setsockopt(inner, RcvBufForce, &BUFFER);
        inner.bind(&SocketAddr::new(0, 0))?;
        inner.add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self { socket, table: table.to_owned() })
    }

    /// Waits until something of the table or a translation changes, or changes were lost.
    ///
    /// May be dropped: nothing is lost.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Socket`] if the socket broke: open another, and compare everything.
    pub async fn changed(&mut self) -> Result<FilterEvent, MonitorError> {
        loop {
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => {
                    if let Some(event) = self.concerns(&datagram) {
                        return Ok(event);
                    }
                }
                Err(error) if is_errno(&error, Errno::ENOBUFS) => return Ok(FilterEvent::Table),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn concerns(&self, datagram: &[u8]) -> Option<FilterEvent> {
        let of = |(kind, _, payload): (u16, u16, &[u8])| {
            if table_of(kind, payload).as_ref() == Some(&self.table) {
                return Some(FilterEvent::Table);
            }
            is_nat_chain(kind, payload).then_some(FilterEvent::Translation)
        };
        messages(datagram).filter_map(of).max()
    }
}

/// The table that a message of nftables is about: in each kind of them it is the first attribute.
fn table_of(kind: u16, payload: &[u8]) -> Option<String> {
    let [message, subsystem] = kind.to_le_bytes();
    if subsystem != NFNL_SUBSYS_NFTABLES || message == NFT_MSG_NEWGEN {
        return None;
    }
    let attributes = Attributes(payload.get(NFGENMSG..)?);
    let mut split = attributes.filter_map(Result::ok);
    split.find(|(kind, _)| *kind == NFTA_TABLE).map(|(_, name)| text_of(name))
}

fn is_nat_chain(kind: u16, payload: &[u8]) -> bool {
    let attributes = || Attributes(payload.get(NFGENMSG..).unwrap_or_default());
    kind.to_le_bytes() == [NFT_MSG_NEWCHAIN, NFNL_SUBSYS_NFTABLES]
        && attributes()
            .filter_map(Result::ok)
            .any(|(kind, value)| kind == NFTA_CHAIN_TYPE && text_of(value) == "nat")
}
