//! Edge: a netlink socket: requests that are acknowledged, one or many. Reading tables is `tables`' part.

use std::io;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_proto::sys::protocols::NETLINK_ROUTE;
use netlink_proto::sys::{AsyncSocket, SocketAddr};
use netlink_proto::{Connection, ConnectionHandle};
use nix::errno::Errno;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::message::Rt;
use crate::wire::{Attributes, text_of};
use crate::{Netns, NetnsError, Request};

/// How many requests may await their acknowledgement at once.
///
/// The acknowledgements of 512 overflow the receive buffer of 208 KiB, and those that are lost never come.
const IN_FLIGHT: usize = 64;

/// How long the kernel has for one batch: it answers in microseconds, but a machine can stand still.
pub(crate) const BATCH_LIMIT: Duration = Duration::from_secs(10);

/// The attribute of an answer that says in words what was wrong.
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_HEADER: usize = 16;

/// A netlink socket of one network namespace.
///
/// It takes one caller at a time (`&mut self`), because the kernel dumps one table at a time to a socket.
/// Whoever gives up waiting (drops the future) may use it again.
#[derive(Debug)]
pub struct Socket {
    handle: ConnectionHandle<Rt>,
    /// Moves messages between the handle and the kernel; ends with the socket.
    carrier: JoinHandle<()>,
}

/// Why a socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system gives none.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The kernel refuses.
    #[error("the kernel refuses `{request}`{}", in_words(.words.as_ref()))]
    Refused {
        /// The request as a command.
        request: String,
        /// What the kernel says to it in words, where it says something.
        words: Option<String>,
        /// The kernel's number for the reason.
        #[source]
        errno: Errno,
    },
    /// No answer came in time. Whether it was carried out is not known: repeat it.
    #[error("no answer from the kernel to `{request}`")]
    NoAnswer {
        /// The request as a command.
        request: String,
    },
}

impl RequestError {
    /// The kernel's number for the reason, if it answered.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::NoAnswer { .. } => None,
        }
    }
}

pub(crate) fn in_words(words: Option<&String>) -> String {
    words.map(|words| format!(": {words}")).unwrap_or_default()
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// Must be called on a tokio runtime with IO and time enabled, which carries its messages.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; also where the kernel is older than 4.20, which cannot filter tables.
    pub fn open() -> Result<Self, OpenError> {
        let (connection, handle) = connect().map_err(OpenError::Socket)?;
        Ok(Self { handle, carrier: tokio::spawn(connection) })
    }

    /// Opens a socket in another network namespace, from where the caller is.
    ///
    /// # Errors
    ///
    /// As [`Socket::open`], and if the namespace cannot be entered.
    pub fn open_in(netns: &Netns) -> Result<Self, OpenError> {
        let runtime = tokio::runtime::Handle::current();
        let connected = netns.run(|| {
            let _runtime = runtime.enter();
            connect()
        })?;
        let (connection, handle) = connected.map_err(OpenError::Socket)?;
        Ok(Self { handle, carrier: tokio::spawn(connection) })
    }

    /// Carries out one request.
    ///
    /// # Errors
    ///
    /// [`RequestError`].
    pub async fn request(&mut self, request: &Request) -> Result<(), RequestError> {
        let mut results = self.batch(std::slice::from_ref(request)).await;
        results.pop().unwrap_or_else(|| unreachable!("a batch has a result for each request"))
    }

    /// Carries out requests in their order, and returns what became of each, in the same order.
    ///
    /// A request that fails stops none of those after it. Far faster than one request after another.
    pub async fn batch(&mut self, requests: &[Request]) -> Vec<Result<(), RequestError>> {
        let mut results = Vec::with_capacity(requests.len());
        for chunk in requests.chunks(IN_FLIGHT) {
            let deadline = Instant::now() + BATCH_LIMIT;
            let mut answers = self.send(chunk.iter().map(Request::encode).collect());
            for request in chunk {
                results.push(match next_answer(&mut answers, deadline).await {
                    Some(answer) => judge(request, &answer),
                    None => Err(RequestError::NoAnswer { request: request.to_string() }),
                });
            }
        }
        results
    }

    /// Sends messages in one go. The stream ends early if the socket is broken.
    pub(crate) fn send(
        &mut self,
        messages: Vec<(Rt, u16)>,
    ) -> impl Stream<Item = NetlinkMessage<Rt>> + Unpin + use<> {
        let message = |(message, flags)| {
            let mut header = NetlinkHeader::default();
            header.flags = flags;
            NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message))
        };
        let messages: Vec<_> = messages.into_iter().map(message).collect();
        let answers = self.handle.request_batch(messages, SocketAddr::new(0, 0));
        futures_util::stream::iter(answers).flatten()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

fn connect() -> io::Result<(Connection<Rt>, ConnectionHandle<Rt>)> {
    let (mut connection, handle, _unsolicited) =
        netlink_proto::new_connection::<Rt>(NETLINK_ROUTE)?;
    // An acknowledgement for each request, and the end of each list, tell a whole answer from a lost one.
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    let socket = connection.socket_mut().socket_mut();
    socket.set_netlink_get_strict_chk(true)?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    Ok((connection, handle))
}

pub(crate) async fn next_answer(
    answers: &mut (impl Stream<Item = NetlinkMessage<Rt>> + Unpin),
    deadline: Instant,
) -> Option<NetlinkMessage<Rt>> {
    timeout_at(deadline, answers.next()).await.ok().flatten()
}

/// What the answer says about the request.
fn judge(request: &Request, answer: &NetlinkMessage<Rt>) -> Result<(), RequestError> {
    match refusal(answer) {
        Some((errno, _)) if request.is_done_by(errno) => Ok(()),
        Some((errno, words)) => {
            Err(RequestError::Refused { request: request.to_string(), words, errno })
        }
        None => Ok(()),
    }
}

/// The reason of a refusal, as number and in words; nothing if it is an acknowledgement.
pub(crate) fn refusal(answer: &NetlinkMessage<Rt>) -> Option<(Errno, Option<String>)> {
    let NetlinkPayload::Error(error) = &answer.payload else { return None };
    let code = error.code?.get();
    let flags = answer.header.flags;
    let attributes = if flags & NLM_F_ACK_TLVS == 0 {
        None
    } else if flags & NLM_F_CAPPED == 0 {
        // The whole message comes back before the attributes, and begins with its length.
        let length = error.header.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length));
        error.header.get(usize::try_from(length).ok()?.next_multiple_of(4)..)
    } else {
        error.header.get(NLMSG_HEADER..)
    };
    Some((Errno::from_raw(code.saturating_neg()), attributes.and_then(words_of)))
}

pub(crate) fn words_of(attributes: &[u8]) -> Option<String> {
    let mut split = Attributes(attributes).filter_map(Result::ok);
    split.find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG).map(|(_, value)| text_of(value))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::ErrorMessage;

    use super::*;

    fn answer(flags: u16, error: ErrorMessage) -> NetlinkMessage<Rt> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        NetlinkMessage::new(header, NetlinkPayload::Error(error))
    }

    #[test]
    fn the_kernels_words_are_found_behind_a_request_that_comes_back() {
        let mut words = Vec::new();
        crate::wire::put(&mut words, 2, &7u32.to_ne_bytes());
        crate::wire::put(&mut words, NLMSGERR_ATTR_MSG, b"no such thing\0");
        for (flags, length) in [(NLM_F_CAPPED, 999u32), (0, 30)] {
            let mut error = ErrorMessage::default();
            error.code = std::num::NonZeroI32::new(-2);
            error.header = length.to_ne_bytes().to_vec();
            error.header.resize(if flags == 0 { 32 } else { NLMSG_HEADER }, 0);
            error.header.extend_from_slice(&words);
            let answer = answer(flags | NLM_F_ACK_TLVS, error);
            assert_eq!(refusal(&answer), Some((Errno::ENOENT, Some("no such thing".to_owned()))));
        }
        let acknowledged = answer(NLM_F_CAPPED, ErrorMessage::default());
        assert_eq!(refusal(&acknowledged), None);
    }
}
