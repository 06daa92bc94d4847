//! Edge: hearing what changes in other network namespaces, without keeping them alive.
//!
//! A socket inside a namespace would be the simple way, and the wrong one: the namespace, and a veth pair into it,
//! would live on until the socket is closed. The kernel also tells a socket out here of every namespace that has a
//! number here, which a veth pair's other end gives it.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;

use netlink_sys::{Socket, SocketAddr, protocols};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt::RcvBufForce,
};
use tokio::io::unix::AsyncFd;

use crate::monitor::{BUFFER, MonitorError};
use crate::news::{Event, changes};

/// Links, neighbours, IPv4 and IPv6 addresses and routes.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];

const SOL_NETLINK: i32 = 270;
const NETLINK_LISTEN_ALL_NSID: i32 = 8;

/// No message of the kernel's is larger.
const DATAGRAM: usize = 64 << 10;

/// An event of another namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElsewhereEvent {
    /// The namespace's number here; none where events were lost: of whichever.
    pub netns: Option<u32>,
    /// What was heard.
    pub event: Event,
}

/// Listens to all network namespaces that have a number in this one.
pub struct ElsewhereMonitor {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
    heard: VecDeque<ElsewhereEvent>,
}

impl ElsewhereMonitor {
    /// Listens from the calling thread's network namespace; needs a tokio runtime with IO enabled.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Socket`]; also without `CAP_NET_BROADCAST`.
    pub fn open() -> Result<Self, MonitorError> {
        let mut socket = Socket::new(protocols::NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        let _ = setsockopt(&socket, RcvBufForce, &BUFFER);
        socket.set_listen_all_namespaces(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        #[expect(
            deprecated,
            reason = "the other way is unsafe code; this socket keeps its descriptor"
        )]
        let socket = AsyncFd::new(socket)?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM], heard: VecDeque::new() })
    }

    /// Waits for the next event of another namespace, for as long as there is none.
    ///
    /// May be dropped: nothing is lost.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Socket`] if the socket broke: open another, and look everywhere.
    pub async fn next(&mut self) -> Result<ElsewhereEvent, MonitorError> {
        loop {
            if let Some(event) = self.heard.pop_front() {
                return Ok(event);
            }
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer;
            match ready.try_io(|socket| receive(socket.get_ref(), buffer)) {
                Ok(Ok(heard)) => self.heard.extend(heard),
                Ok(Err(error)) => return Err(error.into()),
                // It was readable only as long as nobody looked.
                Err(_) => {}
            }
        }
    }
}

/// Receives one datagram and takes it apart, if it is the kernel's and of another namespace.
fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Vec<ElsewhereEvent>> {
    let lost = || vec![ElsewhereEvent { netns: None, event: Event::Overrun }];
    // Room counts by its length. The namespace's number needs a part of it.
    let mut control = vec![0; 128];
    let mut slices = [IoSliceMut::new(buffer)];
    let (flags, descriptor) = (MsgFlags::MSG_DONTWAIT, socket.as_raw_fd());
    let received = recvmsg::<NetlinkAddr>(descriptor, &mut slices, Some(&mut control), flags);
    let message = match received {
        Ok(message) => message,
        Err(Errno::ENOBUFS) => return Ok(lost()),
        Err(errno) => return Err(errno.into()),
    };
    if message.address.is_none_or(|from| from.pid() != 0) {
        return Ok(vec![]);
    }
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Ok(lost());
    }
    let netns = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Unknown(part)
            if part.cmsg_header.cmsg_level == SOL_NETLINK
                && part.cmsg_header.cmsg_type == NETLINK_LISTEN_ALL_NSID =>
        {
            part.data_bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
        }
        _ => None,
    });
    let length = message.bytes;
    // What has no number is of this namespace itself.
    let Some(netns) = netns else { return Ok(vec![]) };
    let datagram = buffer.get(..length).unwrap_or_default();
    let heard = changes(datagram).map(|event| ElsewhereEvent { netns: Some(netns), event });
    Ok(heard.collect())
}
