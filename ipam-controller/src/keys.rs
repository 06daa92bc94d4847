//! Pure: the keys of the store: what each is about, as text that sorts.
//!
//! Names cannot contain a slash, so it separates; addresses are hexadecimal of fixed width, so
//! that ranges of them sort as numbers do.

use std::net::IpAddr;
use std::str::FromStr;

use limpet_api::FleetTime;
use limpet_api::book::AttachmentKey;
use limpet_net_types::{
    Family, Hex, HostName, Namespace, NetworkName, PoolName, Prefix, Token, Uid, WorkloadName,
    address_at,
};

use crate::store::Key;
use crate::tenures::TenureKey;

/// The identity of the store, made with it.
pub(crate) const STORE_ID: &str = "meta/store-id";
const CLOCK: &str = "meta/clock";
const CONFIG: &str = "meta/config";
const RESTORING: &str = "meta/restoring";
const MARK: &str = "meta/mark";

/// What a reservation is kept for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReservationKey {
    /// The network.
    pub(crate) network: NetworkName,
    /// The workload's namespace.
    pub(crate) namespace: Namespace,
    /// The workload's name.
    pub(crate) name: WorkloadName,
}

/// What a key of the store is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// The store's identity.
    StoreId,
    /// Fleet time.
    Clock,
    /// What every change of networks, pools and hosts compares and puts, so that no two of them
    /// are right only by themselves.
    Config,
    /// What a controller writes only to hear of it: everything before has been heard of then.
    Mark,
    /// That a restore is under way.
    Restoring,
    /// That the store was restored, and which hosts are waited for.
    Restored,
    /// A network.
    Network(NetworkName),
    /// A pool.
    Pool(PoolName),
    /// A block of a pool.
    Block(PoolName, Prefix),
    /// An address of a network: the one key on which its uniqueness rests.
    Address(NetworkName, IpAddr),
    /// A reservation.
    Reservation(ReservationKey),
    /// An attachment.
    Attachment(AttachmentKey),
    /// A host.
    Host(HostName),
    /// What every choice of a MAC address by a caller compares and puts, and every other claim
    /// compares: a MAC address is no key, so that two choices at once could be the same.
    MacChoice(NetworkName),
    /// The session of a host's agent.
    Session(HostName),
    /// Which controller hears a host's agent.
    Heard(HostName),
    /// Since when no controller has heard a host's agent.
    Silent(HostName),
    /// A question to a host about its kernel, and the answer.
    Report(HostName, Token),
    /// A question to a host about one incarnation of an attachment.
    Ask(HostName, Uid),
    /// How many addresses a namespace may have. What takes some compares it, and puts it again where it is there.
    Quota(Namespace),
    /// What history says of one ended attachment.
    Tenure(TenureKey),
}

/// A key that no version of limpet up to this one makes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the store has a key that this program does not know: {0:?}; start the newer limpet-controller that wrote it, or restore the store from a backup"
)]
pub(crate) struct UnknownKey(pub(crate) String);

impl Subject {
    /// Returns the key.
    pub(crate) fn key(&self) -> Key {
        match self {
            Self::StoreId => STORE_ID.to_owned(),
            Self::Clock => CLOCK.to_owned(),
            Self::Config => CONFIG.to_owned(),
            Self::Mark => MARK.to_owned(),
            Self::Restoring => RESTORING.to_owned(),
            Self::Restored => "meta/restored".to_owned(),
            Self::Network(name) => joined(["networks", name.as_str()]),
            Self::Pool(name) => joined(["pools", name.as_str()]),
            Self::Block(pool, block) => {
                format!("blocks/{pool}/{}-{}", hex(block.address()).as_str(), block.length())
            }
            Self::Address(network, address) => {
                joined(["addresses", network.as_str(), hex(*address).as_str()])
            }
            Self::Reservation(ReservationKey { network, namespace, name }) => {
                joined(["reservations", network.as_str(), namespace.as_str(), name.as_str()])
            }
            Self::Attachment(AttachmentKey { host, network, container, ifname }) => {
                let [host, network] = [host.as_str(), network.as_str()];
                joined(["attachments", host, network, container.as_str(), ifname.as_str()])
            }
            Self::Host(name) => joined(["hosts", name.as_str()]),
            Self::MacChoice(network) => joined(["macs", network.as_str()]),
            Self::Session(host) => joined(["alive", host.as_str()]),
            Self::Heard(host) => joined(["heard", host.as_str()]),
            Self::Silent(host) => joined(["silent", host.as_str()]),
            Self::Report(host, id) => format!("reports/{host}/{id}"),
            Self::Ask(host, uid) => format!("asks/{host}/{uid}"),
            Self::Quota(namespace) => joined(["quotas", namespace.as_str()]),
            Self::Tenure(TenureKey { at, uid }) => format!("history/{:016x}/{uid}", at.0),
        }
    }

    /// Returns what the key is about.
    ///
    /// # Errors
    ///
    /// [`UnknownKey`]: a newer program wrote to this store, or it is damaged.
    pub(crate) fn parse(key: &str) -> Result<Self, UnknownKey> {
        Self::parsed(key).ok_or_else(|| UnknownKey(key.to_owned()))
    }

    fn parsed(key: &str) -> Option<Self> {
        let parts: Vec<&str> = key.split('/').collect();
        Some(match parts[..] {
            ["meta", "store-id"] => Self::StoreId,
            ["meta", "clock"] => Self::Clock,
            ["meta", "config"] => Self::Config,
            ["meta", "mark"] => Self::Mark,
            ["meta", "restoring"] => Self::Restoring,
            ["meta", "restored"] => Self::Restored,
            ["networks", name] => Self::Network(name.parse().ok()?),
            ["pools", name] => Self::Pool(name.parse().ok()?),
            ["blocks", pool, block] => Self::Block(pool.parse().ok()?, prefix(block)?),
            ["addresses", network, bits] => Self::Address(network.parse().ok()?, address(bits)?),
            ["reservations", network, namespace, name] => Self::Reservation(ReservationKey {
                network: network.parse().ok()?,
                namespace: namespace.parse().ok()?,
                name: name.parse().ok()?,
            }),
            ["attachments", host, network, container, ifname] => Self::Attachment(AttachmentKey {
                host: host.parse().ok()?,
                network: network.parse().ok()?,
                container: container.parse().ok()?,
                ifname: ifname.parse().ok()?,
            }),
            ["hosts", name] => Self::Host(name.parse().ok()?),
            ["macs", network] => Self::MacChoice(network.parse().ok()?),
            ["alive", host] => Self::Session(host.parse().ok()?),
            ["heard", host] => Self::Heard(host.parse().ok()?),
            ["silent", host] => Self::Silent(host.parse().ok()?),
            ["reports", host, id] => Self::Report(host.parse().ok()?, Token::from_str(id).ok()?),
            ["asks", host, uid] => Self::Ask(host.parse().ok()?, Uid::from_str(uid).ok()?),
            ["quotas", namespace] => Self::Quota(namespace.parse().ok()?),
            ["history", at, uid] => {
                Self::Tenure(TenureKey { at: FleetTime(number(at)?), uid: uid.parse().ok()? })
            }
            _ => return None,
        })
    }
}

/// What the keys of all attachments of a host begin with.
pub(crate) fn attachments_of(host: &HostName) -> Key {
    format!("attachments/{host}/")
}

/// The parts of a key, joined. Every claim makes some twenty of them.
fn joined<const N: usize>(parts: [&str; N]) -> Key {
    parts.join("/")
}

fn hex(address: IpAddr) -> Hex {
    match address {
        IpAddr::V4(v4) => Hex::of(&v4.octets()),
        IpAddr::V6(v6) => Hex::of(&v6.octets()),
    }
}

fn prefix(text: &str) -> Option<Prefix> {
    let (first, length) = text.split_once('-')?;
    let first = address(first)?;
    let length: u8 = length.parse().ok()?;
    let block = Prefix::containing(first, length);
    // Written in any other way it would be a second key for the same block.
    (block.address() == first && text == format!("{}-{}", hex(first).as_str(), block.length()))
        .then_some(block)
}

/// A number of 64 bits, written with all its digits.
fn number(hex: &str) -> Option<u64> {
    let digits = hex.len() == 16 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u64::from_str_radix(hex, 16).ok())?
}

fn address(hex: &str) -> Option<IpAddr> {
    let family = match hex.len() {
        8 => Family::V4,
        32 => Family::V6,
        _ => return None,
    };
    let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u128::from_str_radix(hex, 16).ok())?.map(|bits| address_at(family, bits))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name<T: FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = T> {
        "[a-z0-9]{1,3}".prop_map(|text| text.parse().unwrap())
    }

    fn ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
            any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
        ]
    }

    fn subject() -> impl Strategy<Value = Subject> {
        prop_oneof![
            Just(Subject::StoreId),
            Just(Subject::Clock),
            Just(Subject::Config),
            Just(Subject::Restoring),
            Just(Subject::Restored),
            Just(Subject::Mark),
            name().prop_map(Subject::Network),
            name().prop_map(Subject::Pool),
            (name(), ip(), 0..=128_u8).prop_map(|(pool, ip, length)| {
                Subject::Block(pool, Prefix::containing(ip, length))
            }),
            (name(), ip()).prop_map(|(network, ip)| Subject::Address(network, ip)),
            (name(), name(), name()).prop_map(|(network, namespace, name)| {
                Subject::Reservation(ReservationKey { network, namespace, name })
            }),
            (name(), name(), name(), name()).prop_map(|(host, network, container, ifname)| {
                Subject::Attachment(AttachmentKey { host, network, container, ifname })
            }),
            name().prop_map(Subject::Host),
            name().prop_map(Subject::MacChoice),
            name().prop_map(Subject::Session),
            name().prop_map(Subject::Heard),
            name().prop_map(Subject::Silent),
            name().prop_map(Subject::Quota),
            (name(), any::<u128>())
                .prop_map(|(host, bits)| Subject::Ask(host, Token::from_bits(bits))),
            (any::<u64>(), any::<u128>()).prop_map(|(at, bits)| {
                Subject::Tenure(TenureKey { at: FleetTime(at), uid: Token::from_bits(bits) })
            }),
            (name(), any::<u128>())
                .prop_map(|(host, bits)| Subject::Report(host, Token::from_bits(bits))),
        ]
    }

    proptest! {
        #[test]
        fn a_key_says_what_it_was_made_of(subject in subject()) {
            prop_assert_eq!(Subject::parse(&subject.key()), Ok(subject));
        }

        #[test]
        fn keys_of_one_family_sort_as_their_addresses(a in any::<u32>(), b in any::<u32>()) {
            let key = |bits: u32| Subject::Address("n".parse().unwrap(), IpAddr::V4(bits.into())).key();
            prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
        }

        #[test]
        fn any_text_is_a_key_or_is_refused(text in "[a-z/0-9-]{0,40}") {
            if let Ok(subject) = Subject::parse(&text) {
                prop_assert_eq!(subject.key(), text);
            }
        }
    }
}
