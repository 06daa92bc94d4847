//! Pure: which records of history the store has, without the records.
//!
//! Of each this keeps when it ended and a few bits of what people search by, 40 bytes in all: enough
//! to find the oldest, and to pass over almost all that do not fit a question. What is left is read from the
//! store, which knows.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::IpAddr;

use limpet_api::FleetTime;
use limpet_api::history::HistoryQuery;
use limpet_net_types::{Token, Uid, stable_hash};
use serde::Deserialize;

/// What a record of history is called: when the tenure ended, then whose it was, so that they sort by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TenureKey {
    /// When it ended.
    pub(crate) at: FleetTime,
    /// The attachment's incarnation.
    pub(crate) uid: Uid,
}

/// What of a stored tenure is kept in memory.
#[derive(Debug, Deserialize)]
pub(crate) struct Traits<'a> {
    #[serde(borrow)]
    host: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    addresses: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    address: IpAddr,
}

/// What is kept of a record. The uid is bytes, since a number of 128 bits would make it 48 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    at: u64,
    uid: [u8; 16],
    v4: u32,
    v6: u32,
    name: u32,
    host: u32,
}

impl Mark {
    fn key(&self) -> TenureKey {
        let uid = Token::from_bits(u128::from_be_bytes(self.uid));
        TenureKey { at: FleetTime(self.at), uid }
    }
}

/// Some bits of a text: equal for equal texts, and for others with one chance in four thousand million.
fn bits(text: &str) -> u32 {
    u32::try_from(stable_hash(&[text]) >> 32).unwrap_or(u32::MAX)
}

/// The bits of an address: itself, or of its text.
fn address_bits(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => bits(&v6.to_string()),
    }
}

/// The records that there are, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tenures(VecDeque<Mark>);

impl Tenures {
    /// Notes a record. Most are newer than all before them, which costs next to nothing.
    pub(crate) fn insert(&mut self, key: TenureKey, traits: &Traits<'_>) {
        let of = |is_v4: bool| {
            let mut addresses = traits.addresses.iter().map(|found| found.address);
            addresses.find(|address| address.is_ipv4() == is_v4).map_or(0, address_bits)
        };
        let mark = Mark {
            at: key.at.0,
            uid: key.uid.bits().to_be_bytes(),
            v4: of(true),
            v6: of(false),
            name: bits(&traits.name),
            host: bits(&traits.host),
        };
        self.put(mark);
    }

    /// What is kept of a record.
    pub(crate) fn get(&self, key: TenureKey) -> Option<Mark> {
        self.place(key).ok().and_then(|place| self.0.get(place)).copied()
    }

    /// Puts back what was kept of a record.
    pub(crate) fn put(&mut self, mark: Mark) {
        match self.place(mark.key()) {
            Ok(place) => {
                if let Some(there) = self.0.get_mut(place) {
                    *there = mark;
                }
            }
            Err(place) => self.0.insert(place, mark),
        }
    }

    /// Forgets a record; the oldest ones go at next to no cost.
    pub(crate) fn remove(&mut self, key: TenureKey) {
        if let Ok(place) = self.place(key) {
            self.0.remove(place);
        }
    }

    fn place(&self, key: TenureKey) -> Result<usize, usize> {
        self.0.binary_search_by(|mark| mark.key().cmp(&key))
    }

    /// Whether there is such a record.
    pub(crate) fn has(&self, key: TenureKey) -> bool {
        self.place(key).is_ok()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, the oldest first.
    pub(crate) fn oldest(&self) -> impl Iterator<Item = TenureKey> {
        self.0.iter().map(Mark::key)
    }

    /// Those older than `before` that may be asked for, the latest first. It looks at each, at some
    /// hundred million a second, and says of very few that they may be asked for although they are not.
    pub(crate) fn candidates(
        &self,
        query: &HistoryQuery,
        before: Option<TenureKey>,
    ) -> impl Iterator<Item = TenureKey> {
        let end = match before {
            Some(before) => self.place(before).unwrap_or_else(|place| place),
            None => self.0.len(),
        };
        let (name, host) = (query.name.as_ref(), query.host.as_ref());
        let (name, host) = (name.map(|n| bits(n.as_str())), host.map(|h| bits(h.as_str())));
        let address = query.address.map(|address| (address.is_ipv4(), address_bits(address)));
        let fits = move |mark: &&Mark| {
            name.is_none_or(|name| mark.name == name)
                && host.is_none_or(|host| mark.host == host)
                && address.is_none_or(|(is_v4, bits)| bits == if is_v4 { mark.v4 } else { mark.v6 })
        };
        self.0.range(..end).rev().filter(fits).map(Mark::key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::state::sample::name;

    #[test]
    fn a_record_costs_forty_bytes() {
        assert_eq!(size_of::<Mark>(), 40);
    }

    fn key() -> impl Strategy<Value = TenureKey> {
        (0..3_u64, 0..3_u128)
            .prop_map(|(at, uid)| TenureKey { at: FleetTime(at), uid: Token::from_bits(uid) })
    }

    fn traits((host, name, last): (u8, u8, u8)) -> Traits<'static> {
        let v4 = IpAddr::from([10, 0, 0, last]);
        let v6 = format!("fd00::{last}").parse().unwrap();
        let addresses = [v4, v6].map(|address| Address { address }).into();
        Traits { host: format!("h{host}").into(), name: format!("n{name}").into(), addresses }
    }

    proptest! {
        #[test]
        fn what_is_asked_for_is_found_latest_first_and_the_oldest_is_known(
            steps in prop::collection::vec((key(), prop::option::of((0..2_u8, 0..2_u8, 0..2_u8))), 0..20),
            before in prop::option::of(key()),
            asked in (prop::option::of(0..2_u8), prop::option::of(0..2_u8), prop::option::of((any::<bool>(), 0..2_u8))),
        ) {
            let (mut tenures, mut model) = (Tenures::default(), BTreeMap::new());
            for (key, what) in steps {
                if let Some(what) = what {
                    tenures.insert(key, &traits(what));
                    model.insert(key, what);
                } else {
                    tenures.remove(key);
                    model.remove(&key);
                }
            }
            prop_assert_eq!(tenures.len(), model.len());
            prop_assert!(tenures.oldest().eq(model.keys().copied()));
            let address = |(is_v4, last): (bool, u8)| -> IpAddr {
                if is_v4 { IpAddr::from([10, 0, 0, last]) } else { name(&format!("fd00::{last}")) }
            };
            let query = HistoryQuery {
                host: asked.0.map(|host| name(&format!("h{host}"))),
                name: asked.1.map(|n| name(&format!("n{n}"))),
                address: asked.2.map(address),
                ..HistoryQuery::default()
            };
            let expected = model.iter().rev().filter(|(key, (host, n, last))| {
                before.is_none_or(|before| **key < before)
                    && asked.0.is_none_or(|asked| asked == *host)
                    && asked.1.is_none_or(|asked| asked == *n)
                    && asked.2.is_none_or(|(_, asked)| asked == *last)
            });
            prop_assert!(tenures.candidates(&query, before).eq(expected.map(|(key, _)| *key)));
        }
    }
}
