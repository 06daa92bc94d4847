//! Edge: a netlink socket: requests that are acknowledged, batches of them, and whole tables.

use std::io;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use limpet_net_types::Family;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_proto::sys::protocols::NETLINK_ROUTE;
use netlink_proto::sys::{AsyncSocket, SocketAddr};
use netlink_proto::{Connection, ConnectionHandle};
use nix::errno::Errno;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::link::Which;
use crate::message::{RTM_GETNEXTHOP, RTM_NEWLINK, RTM_NEWNEXTHOP, Rt};
use crate::wire::{Attributes, Malformed, text_of};
use crate::{
    Address, FdbEntry, FoundAddress, FoundNeighbour, Link, Neighbour, Netns, NetnsError, Nexthop,
    Request, Route, RouteFilter, Rule, nexthop,
};

/// How many requests may await their acknowledgement at once.
///
/// The acknowledgements of 512 overflow the receive buffer of 208 KiB, and those that are lost never come.
const IN_FLIGHT: usize = 64;

/// How long the kernel has for one batch: it answers in microseconds, but a machine can stand still.
const BATCH_LIMIT: Duration = Duration::from_secs(10);

/// How long the kernel has for one table: an FDB of 400,000 entries takes 4 s.
const DUMP_LIMIT: Duration = Duration::from_secs(30);

/// How often a table is read again that changed while it was read.
const DUMP_TRIES: usize = 10;

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

/// Why a table was not read. There is no part of it: what is not seen would be taken for gone.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel refuses.
    #[error("the kernel refuses to list {table}{}", in_words(.words.as_ref()))]
    Refused {
        /// Which table.
        table: &'static str,
        /// What the kernel says in words, where it says something.
        words: Option<String>,
        /// The kernel's number for the reason.
        #[source]
        errno: Errno,
    },
    /// The table changed while it was read, however often it was tried. Try again later.
    #[error("the list of {table} changed each time it was read")]
    Interrupted {
        /// Which table.
        table: &'static str,
    },
    /// An entry is of a form that is not understood: the kernel is newer than limpet, or limpet wrong.
    #[error("an entry of the list of {table} is not understood: {reason}")]
    Undecodable {
        /// Which table.
        table: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// The list did not come, or not to its end. Try again later.
    #[error("the kernel did not list {table} to the end")]
    Cut {
        /// Which table.
        table: &'static str,
    },
}

fn in_words(words: Option<&String>) -> String {
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

    /// Lists all devices.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part.
    pub async fn links(&mut self) -> Result<Vec<Link>, ReadError> {
        let ask = Rt::Route(Message::GetLink(Which::All.question()));
        self.dump("links", &ask, link_of).await
    }

    /// Finds a device by its name.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; that there is none is no error.
    pub async fn link_named(&mut self, name: &str) -> Result<Option<Link>, ReadError> {
        self.link(Which::Name(name)).await
    }

    /// Finds a device by its index.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; that there is none is no error.
    pub async fn link_at(&mut self, index: u32) -> Result<Option<Link>, ReadError> {
        self.link(Which::Index(index)).await
    }

    async fn link(&mut self, which: Which<'_>) -> Result<Option<Link>, ReadError> {
        let table = "links";
        let deadline = Instant::now() + BATCH_LIMIT;
        let ask = Rt::Route(Message::GetLink(which.question()));
        let mut answers = self.send(vec![(ask, NLM_F_REQUEST | NLM_F_ACK)]);
        let mut found = None;
        while let Some(answer) = next_answer(&mut answers, deadline).await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => {
                    found = link_of(&message).map_err(|e| undecodable(table, &e))?;
                }
                NetlinkPayload::Error(_) => {
                    return match refusal(&answer) {
                        None | Some((Errno::ENODEV, _)) => Ok(found),
                        Some((errno, words)) => Err(ReadError::Refused { table, words, errno }),
                    };
                }
                _ => {}
            }
        }
        Err(ReadError::Cut { table })
    }

    /// Lists the addresses of one device, or of all.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part. A device that is gone has none.
    pub async fn addresses(&mut self, device: Option<u32>) -> Result<Vec<FoundAddress>, ReadError> {
        let ask = Rt::Route(Message::GetAddress(Address::dump(device)));
        let found = self.dump("addresses", &ask, |message| match message {
            Rt::Route(Message::NewAddress(message)) => FoundAddress::decode(message).map(Some),
            _ => Err(Malformed("not an address")),
        });
        none_if(Errno::ENODEV, found.await)
    }

    /// Lists the neighbour entries of one device, or of all, IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part. A device that is gone has none.
    pub async fn neighbours(
        &mut self,
        device: Option<u32>,
    ) -> Result<Vec<FoundNeighbour>, ReadError> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            let ask = Rt::Route(Message::GetNeighbour(Neighbour::dump(device, family)));
            let found = self.dump("neighbours", &ask, |message| match message {
                Rt::Route(Message::NewNeighbour(message)) => FoundNeighbour::decode(message)
                    .map(|found| device.is_none_or(|at| at == found.device).then_some(found)),
                _ => Err(Malformed("not a neighbour")),
            });
            all.extend(none_if(Errno::ENODEV, found.await)?);
        }
        Ok(all)
    }

    /// Lists the forwarding entries of one device.
    ///
    /// Costs the kernel the square of their number: not for a timer where there are very many.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part. A device that is gone has none.
    pub async fn fdb(&mut self, device: u32) -> Result<Vec<FdbEntry>, ReadError> {
        let ask = Rt::Route(Message::GetNeighbour(FdbEntry::dump(device)));
        let found = self.dump("FDB entries", &ask, |message| match message {
            Rt::Route(Message::NewNeighbour(message)) => {
                FdbEntry::decode(message).map(|found| (found.device == device).then_some(found))
            }
            _ => Err(Malformed("not an FDB entry")),
        });
        none_if(Errno::ENODEV, found.await)
    }

    /// Lists the routes of one table and maker, IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part. A table that was never used has none.
    pub async fn routes(&mut self, filter: RouteFilter) -> Result<Vec<Route>, ReadError> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            let ask = Rt::Route(Message::GetRoute(filter.dump(family)));
            let found = self.dump("routes", &ask, |message| match message {
                Rt::Route(Message::NewRoute(message)) => {
                    let wanted = |route: &Route| {
                        let by = filter.protocol == 0 || route.protocol == filter.protocol;
                        by && route.table == filter.table
                    };
                    Route::decode(message).map(|route| Some(route).filter(wanted))
                }
                _ => Err(Malformed("not a route")),
            });
            all.extend(none_if(Errno::ENOENT, found.await)?);
        }
        Ok(all)
    }

    /// Lists the rules that limpet could have set, IPv4 and IPv6: those with a table and at most a source.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part.
    pub async fn rules(&mut self) -> Result<Vec<Rule>, ReadError> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            let ask = Rt::Route(Message::GetRule(Rule::dump(family)));
            let found = self.dump("rules", &ask, |message| match message {
                Rt::Route(Message::NewRule(message)) => Rule::decode(message),
                _ => Err(Malformed("not a rule")),
            });
            all.extend(found.await?);
        }
        Ok(all)
    }

    /// Lists all nexthops, of every maker.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part.
    pub async fn nexthops(&mut self) -> Result<Vec<Nexthop>, ReadError> {
        let ask = Rt::Raw(RTM_GETNEXTHOP, nexthop::encode_dump());
        self.dump("nexthops", &ask, |message| match message {
            Rt::Raw(RTM_NEWNEXTHOP, payload) => Nexthop::decode(payload).map(Some),
            _ => Err(Malformed("not a nexthop")),
        })
        .await
    }

    /// Reads a whole table, again from the start if it changed meanwhile.
    async fn dump<T>(
        &mut self,
        table: &'static str,
        ask: &Rt,
        decode: impl Fn(&Rt) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, ReadError> {
        let deadline = Instant::now() + DUMP_LIMIT;
        for _ in 0..DUMP_TRIES {
            let answers = self.send(vec![(ask.clone(), NLM_F_REQUEST | NLM_F_DUMP)]);
            if let Some(whole) = collect(table, answers, deadline, &decode).await? {
                return Ok(whole);
            }
        }
        Err(ReadError::Interrupted { table })
    }

    /// Sends messages in one go. The stream ends early if the socket is broken.
    fn send(
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

async fn next_answer(
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
fn refusal(answer: &NetlinkMessage<Rt>) -> Option<(Errno, Option<String>)> {
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

fn words_of(attributes: &[u8]) -> Option<String> {
    let mut split = Attributes(attributes).filter_map(Result::ok);
    split.find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG).map(|(_, value)| text_of(value))
}

/// Reads a list to its end. Nothing if it changed meanwhile.
async fn collect<T>(
    table: &'static str,
    mut answers: impl Stream<Item = NetlinkMessage<Rt>> + Unpin,
    deadline: Instant,
    decode: &impl Fn(&Rt) -> Result<Option<T>, Malformed>,
) -> Result<Option<Vec<T>>, ReadError> {
    let (mut whole, mut interrupted) = (Vec::new(), false);
    while let Some(answer) = next_answer(&mut answers, deadline).await {
        interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
        match &answer.payload {
            NetlinkPayload::InnerMessage(message) => {
                whole.extend(decode(message).map_err(|e| undecodable(table, &e))?);
            }
            NetlinkPayload::Done(done) if done.code == 0 => {
                return Ok((!interrupted).then_some(whole));
            }
            NetlinkPayload::Done(done) => {
                let errno = Errno::from_raw(done.code.saturating_neg());
                return Err(ReadError::Refused {
                    table,
                    words: words_of(&done.extended_ack),
                    errno,
                });
            }
            _ => {
                if let Some((errno, words)) = refusal(&answer) {
                    return Err(ReadError::Refused { table, words, errno });
                }
            }
        }
    }
    Err(ReadError::Cut { table })
}

fn undecodable(table: &'static str, reason: &Malformed) -> ReadError {
    ReadError::Undecodable { table, reason: reason.to_string() }
}

/// Takes the kernel's word that the thing is not there for an empty list of what is on it.
fn none_if<T>(gone: Errno, found: Result<Vec<T>, ReadError>) -> Result<Vec<T>, ReadError> {
    match found {
        Err(ReadError::Refused { errno, .. }) if errno == gone => Ok(Vec::new()),
        other => other,
    }
}

fn link_of(message: &Rt) -> Result<Option<Link>, Malformed> {
    match message {
        Rt::Raw(RTM_NEWLINK, payload) => Link::decode(payload).map(Some),
        _ => Err(Malformed("not a link")),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DoneMessage;
    use netlink_packet_core::ErrorMessage;

    use super::*;

    fn message(flags: u16, payload: NetlinkPayload<Rt>) -> NetlinkMessage<Rt> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        NetlinkMessage::new(header, payload)
    }

    fn entry(id: u16) -> NetlinkMessage<Rt> {
        message(0, NetlinkPayload::InnerMessage(Rt::Raw(id, Vec::new())))
    }

    fn done(code: i32) -> NetlinkMessage<Rt> {
        let mut done = DoneMessage::default();
        done.code = code;
        message(0, NetlinkPayload::Done(done))
    }

    async fn list(messages: Vec<NetlinkMessage<Rt>>) -> Result<Option<Vec<u16>>, ReadError> {
        let decode = |message: &Rt| match message {
            Rt::Raw(0, _) => Ok(None),
            Rt::Raw(id, _) if *id < 100 => Ok(Some(*id)),
            _ => Err(Malformed("beyond 100")),
        };
        let deadline = Instant::now() + BATCH_LIMIT;
        collect("things", futures_util::stream::iter(messages), deadline, &decode).await
    }

    #[tokio::test]
    async fn a_list_is_whole_or_an_error() {
        let whole = list(vec![entry(1), entry(0), entry(2), done(0)]).await;
        assert_eq!(whole.unwrap(), Some(vec![1, 2]));
        let cut = list(vec![entry(1), entry(2)]).await;
        assert_eq!(cut.unwrap_err().to_string(), "the kernel did not list things to the end");
        let unknown = list(vec![entry(1), entry(200), done(0)]).await;
        assert_eq!(
            unknown.unwrap_err().to_string(),
            "an entry of the list of things is not understood: beyond 100"
        );
        let refused = list(vec![entry(1), done(-16)]).await.unwrap_err();
        assert!(matches!(refused, ReadError::Refused { errno: Errno::EBUSY, .. }), "{refused}");
    }

    #[tokio::test]
    async fn a_list_that_changed_while_it_was_read_is_no_list() {
        for interrupted in [0, 1, 2] {
            let mut messages = vec![entry(1), entry(2), done(0)];
            messages[interrupted].header.flags |= NLM_F_DUMP_INTR;
            assert_eq!(list(messages).await.unwrap(), None);
        }
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
            let answer = message(flags | NLM_F_ACK_TLVS, NetlinkPayload::Error(error));
            assert_eq!(refusal(&answer), Some((Errno::ENOENT, Some("no such thing".to_owned()))));
        }
        let acknowledged = message(NLM_F_CAPPED, NetlinkPayload::Error(ErrorMessage::default()));
        assert_eq!(refusal(&acknowledged), None);
    }
}
