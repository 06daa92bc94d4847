//! Edge: hearing what changes in the kernel's tables, entry by entry.

use std::collections::VecDeque;
use std::io;

use netlink_proto::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::netns::{Netns, NetnsError};
use crate::news::{Event, changes};

/// Enough for a burst of 100,000 changes; with the default of 208 KiB 3 of 100 were lost.
pub(crate) const BUFFER: usize = 4 << 20;

/// The multicast groups: links, neighbours, IPv4 and IPv6 addresses, routes and rules, nexthops, and settings.
const GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32];

/// Why the kernel cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The socket cannot be opened, or broke.
    #[error("cannot listen to the kernel's changes")]
    Socket(#[from] io::Error),
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// Listens to one network namespace.
pub struct Monitor {
    socket: TokioSocket,
    heard: VecDeque<Event>,
}

impl Monitor {
    /// Listens to the calling thread's network namespace; needs a tokio runtime with IO enabled.
    ///
    /// Everything that changes after this returns is heard: open it first, then read the tables.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Socket`].
    pub fn open() -> Result<Self, MonitorError> {
        let mut socket = TokioSocket::new(protocols::NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        // Needs CAP_NET_ADMIN; without it the monitor only overruns earlier.
        let _ = setsockopt(inner, RcvBufForce, &BUFFER);
        inner.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            inner.add_membership(group)?;
        }
        Ok(Self { socket, heard: VecDeque::new() })
    }

    /// Listens to another network namespace.
    ///
    /// # Errors
    ///
    /// As [`Monitor::open`], and if the namespace cannot be entered.
    pub fn open_in(netns: &Netns) -> Result<Self, MonitorError> {
        let runtime = tokio::runtime::Handle::current();
        netns.run(|| {
            let _runtime = runtime.enter();
            Self::open()
        })?
    }

    /// Waits for the next event, for as long as there is none.
    ///
    /// May be dropped: nothing is lost.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Socket`] if the socket broke: open another, and compare everything.
    pub async fn next(&mut self) -> Result<Event, MonitorError> {
        loop {
            if let Some(event) = self.heard.pop_front() {
                return Ok(event);
            }
            match self.socket.recv_from_full().await {
                Ok((datagram, from)) => self.take(&datagram, from),
                Err(error) if is_errno(&error, Errno::ENOBUFS) => return Ok(Event::Overrun),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Everything that was told by now, without waiting. The kernel tells of a change before whoever made it has his
    /// answer, so that what was answered before this call has been told.
    ///
    /// # Errors
    ///
    /// As [`Monitor::next`].
    pub fn told(&mut self) -> Result<Vec<Event>, MonitorError> {
        loop {
            // Past the runtime, which may not know yet that there is something to read.
            match self.socket.socket_ref().recv_from_full() {
                Ok((datagram, from)) => self.take(&datagram, from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(self.heard.drain(..).collect());
                }
                Err(error) if is_errno(&error, Errno::ENOBUFS) => {
                    self.heard.push_back(Event::Overrun);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Who is not the kernel is not believed: any program may send to a socket of which it knows the number.
    fn take(&mut self, datagram: &[u8], from: SocketAddr) {
        if from.port_number() == 0 {
            self.heard.extend(changes(datagram));
        }
    }
}

pub(crate) fn is_errno(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == io::Error::from(errno).raw_os_error()
}
