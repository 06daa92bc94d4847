//! Edge: reading the kernel's tables, each whole or not at all.

use std::time::Duration;

use futures_util::Stream;
use limpet_net_types::Family;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use nix::errno::Errno;
use tokio::time::Instant;

use crate::link::Which;
use crate::message::{
    RTM_GETNEXTHOP, RTM_GETQDISC, RTM_GETTFILTER, RTM_NEWLINK, RTM_NEWNEXTHOP, RTM_NEWQDISC,
    RTM_NEWTFILTER, Rt,
};
use crate::socket::{BATCH_LIMIT, in_words, next_answer, refusal, words_of};
use crate::wire::Malformed;
use crate::{
    Address, Detour, FdbEntry, FoundAddress, FoundNeighbour, FoundTbf, Link, Neighbour, Nexthop,
    Route, RouteFilter, Rule, Socket, Tunnel, nexthop, shape,
};

/// How long the kernel has for one table: an FDB of 400,000 entries takes 4 s.
const DUMP_LIMIT: Duration = Duration::from_secs(30);

/// How often a table is read again that changed while it was read.
const DUMP_TRIES: usize = 10;

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

impl Socket {
    /// Lists all devices.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part.
    pub async fn links(&mut self) -> Result<Vec<Link>, ReadError> {
        let ask = Rt::Route(Message::GetLink(Which::All.question()));
        self.dump("links", &ask, link_of).await
    }

    /// Lists the VXLAN devices, whoever made them.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part.
    pub async fn tunnels(&mut self) -> Result<Vec<Tunnel>, ReadError> {
        let ask = Rt::Route(Message::GetLink(Which::All.question()));
        self.dump("VXLAN devices", &ask, |message| match message {
            Rt::Raw(RTM_NEWLINK, payload) => Tunnel::decode(payload),
            _ => Err(Malformed("not a link")),
        })
        .await
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

    /// Lists the routes of one table or all, and of one maker or all, IPv4 and IPv6.
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
                        by && (filter.table == 0 || route.table == filter.table)
                    };
                    Route::decode(message).map(|route| Some(route).filter(wanted))
                }
                _ => Err(Malformed("not a route")),
            });
            all.extend(none_if(Errno::ENOENT, found.await)?);
        }
        Ok(all)
    }

    /// Lists the rules that limpet could have set, IPv4 and IPv6: those with one selector at most.
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

    /// Lists the token buckets at devices' roots.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part.
    pub async fn tbfs(&mut self) -> Result<Vec<FoundTbf>, ReadError> {
        let ask = Rt::Raw(RTM_GETQDISC, shape::encode_qdisc_dump());
        self.dump("queueing disciplines", &ask, |message| match message {
            Rt::Raw(RTM_NEWQDISC, payload) => FoundTbf::decode(payload),
            _ => Err(Malformed("not a queueing discipline")),
        })
        .await
    }

    /// Lists the detours of what a device receives.
    ///
    /// # Errors
    ///
    /// [`ReadError`], never a part. A device that is gone, or has no place for any, has none.
    pub async fn detours(&mut self, device: u32) -> Result<Vec<Detour>, ReadError> {
        let ask = Rt::Raw(RTM_GETTFILTER, shape::encode_filter_dump(device));
        self.dump("filters", &ask, |message| match message {
            Rt::Raw(RTM_NEWTFILTER, payload) => Detour::decode(payload),
            _ => Err(Malformed("not a filter")),
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
            // Some of the answer was lost.
            NetlinkPayload::Overrun(_) => return Err(ReadError::Cut { table }),
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
    use netlink_packet_core::{DoneMessage, NetlinkHeader};
    use proptest::prelude::*;

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

    /// One message of an answer, whole or broken in one of the ways that there are.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Part {
        Entry(u16),
        Foreign,
        Unknown,
        Interrupted(u16),
        Acknowledged,
        Error(i32),
        Noise,
        Overrun,
        Done,
        DoneInterrupted,
        DoneWith(i32),
    }

    fn part() -> impl Strategy<Value = Part> {
        prop_oneof![
            12 => (1..100_u16).prop_map(Part::Entry),
            2 => Just(Part::Foreign),
            1 => Just(Part::Unknown),
            1 => (1..100_u16).prop_map(Part::Interrupted),
            1 => Just(Part::Acknowledged),
            1 => (1..140_i32).prop_map(Part::Error),
            1 => Just(Part::Noise),
            1 => Just(Part::Overrun),
            3 => Just(Part::Done),
            1 => Just(Part::DoneInterrupted),
            1 => (1..140_i32).prop_map(Part::DoneWith),
        ]
    }

    fn of(part: Part) -> NetlinkMessage<Rt> {
        let error = |code: i32| {
            let mut error = netlink_packet_core::ErrorMessage::default();
            error.code = std::num::NonZeroI32::new(-code);
            message(0, NetlinkPayload::Error(error))
        };
        let interrupted = |mut message: NetlinkMessage<Rt>| {
            message.header.flags |= NLM_F_DUMP_INTR;
            message
        };
        match part {
            Part::Entry(id) => entry(id),
            Part::Foreign => entry(0),
            Part::Unknown => entry(200),
            Part::Interrupted(id) => interrupted(entry(id)),
            Part::Acknowledged => error(0),
            Part::Error(code) => error(code),
            Part::Noise => message(0, NetlinkPayload::Noop),
            Part::Overrun => message(0, NetlinkPayload::Overrun(vec![])),
            Part::Done => done(0),
            Part::DoneInterrupted => interrupted(done(0)),
            Part::DoneWith(code) => done(-code),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        /// A list is given out only if the kernel said that it was at its end, and nothing was lost, foreign to it or
        /// changed before that.
        #[test]
        fn whatever_comes_a_list_is_the_whole_one_or_none(parts in prop::collection::vec(part(), 0..12)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let got = runtime.block_on(list(parts.iter().copied().map(of).collect()));
            let is_done = |part: &Part| matches!(part, Part::Done | Part::DoneInterrupted);
            let end = parts.iter().position(is_done);
            let before = &parts[..end.unwrap_or(parts.len())];
            let bad = |part: &Part| {
                matches!(part, Part::Unknown | Part::Error(_) | Part::DoneWith(_) | Part::Overrun)
            };
            let broken = before.iter().any(bad) || end.is_none();
            let changed = before.iter().any(|part| matches!(part, Part::Interrupted(_)))
                || end.is_some_and(|end| parts[end] == Part::DoneInterrupted);
            match got {
                Err(_) => prop_assert!(broken),
                Ok(None) => prop_assert!(!broken && changed),
                Ok(Some(whole)) => {
                    prop_assert!(!broken && !changed);
                    let entries = before.iter().filter_map(|part| match part {
                        Part::Entry(id) => Some(*id),
                        _ => None,
                    });
                    prop_assert_eq!(whole, entries.collect::<Vec<_>>());
                }
            }
        }
    }
}
