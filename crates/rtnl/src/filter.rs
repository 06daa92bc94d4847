//! Edge: whether an nftables table is there; no more is asked of nftables here.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

use crate::wire::put;

const NLMSG_HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// The message `NFT_MSG_GETTABLE` of the subsystem `NFNL_SUBSYS_NFTABLES`.
const GET_TABLE: u16 = 10 << 8 | 1;
const NFPROTO_INET: u8 = 1;
const NFTA_TABLE_NAME: u16 = 1;

/// Whether there is an nftables table of the family `inet` and this name in the calling thread's network namespace.
///
/// Costs a few microseconds: no program is started.
///
/// # Errors
///
/// The system's answer; also where the kernel has no nftables.
pub fn has_filter_table(name: &str) -> io::Result<bool> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&question(name), 0)?;
    // The kernel has answered by the time that it has taken the question.
    let (answer, _) = socket.recv_from_full()?;
    let word = |at: usize| answer.get(at..).and_then(<[u8]>::first_chunk::<4>);
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let [low, high, ..]: [u8; 4] = *word(4).ok_or_else(cut)?;
    if u16::from_ne_bytes([low, high]) != NLMSG_ERROR {
        return Ok(true);
    }
    let code = i32::from_ne_bytes(*word(NLMSG_HEADER).ok_or_else(cut)?);
    match Errno::from_raw(code.saturating_neg()) {
        Errno::ENOENT => Ok(false),
        errno => Err(errno.into()),
    }
}

fn question(name: &str) -> Vec<u8> {
    let mut body = vec![NFPROTO_INET, 0, 0, 0];
    put(&mut body, NFTA_TABLE_NAME, format!("{name}\0").as_bytes());
    // A table's name has 31 characters at most.
    let length = u32::try_from(NLMSG_HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(GET_TABLE.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.append(&mut body);
    message
}
