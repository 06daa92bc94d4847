//! Pure: attachments whose interfaces are being made: claimed over a connection that is still open.
//!
//! Until the plugin has confirmed or its connection has ended, the kernel has no veth pair to show for them.

use std::collections::BTreeMap;

use limpet_net_types::Uid;

use crate::view::Key;

/// The number of a plugin's connection.
pub(crate) type ConnectionId = u64;

/// The attachments in the making.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flights(BTreeMap<Uid, (ConnectionId, Key)>);

impl Flights {
    /// The plugin of this connection is about to make an interface.
    pub(crate) fn begin(&mut self, uid: Uid, connection: ConnectionId, key: Key) {
        self.0.insert(uid, (connection, key));
    }

    /// The interface is there, or will not be.
    pub(crate) fn end(&mut self, uid: Uid) {
        self.0.remove(&uid);
    }

    /// A connection has ended, and with it what it had begun.
    pub(crate) fn close(&mut self, connection: ConnectionId) {
        self.0.retain(|_, (by, _)| *by != connection);
    }

    /// Whether an interface for this incarnation is being made.
    pub(crate) fn has(&self, uid: Uid) -> bool {
        self.0.contains_key(&uid)
    }

    /// The incarnations whose interfaces are being made.
    pub(crate) fn uids(&self) -> impl Iterator<Item = Uid> {
        self.0.keys().copied()
    }

    /// The attachments whose interfaces are being made.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.values().map(|(_, key)| key)
    }

    /// No interface will come of what was begun for a key; by one connection, or by any.
    pub(crate) fn give_up(&mut self, key: &Key, connection: Option<ConnectionId>) {
        let by_it = |by: ConnectionId| connection.is_none_or(|connection| connection == by);
        self.0.retain(|_, (by, of)| of != key || !by_it(*by));
    }
}

#[cfg(test)]
mod tests {
    use limpet_net_types::Token;

    use super::*;
    use crate::fixture;

    #[test]
    fn what_a_connection_began_ends_with_it_or_with_its_key() {
        let key = |n| Key::of(&fixture::attachment(n, 0));
        let uid = Token::from_bits;
        let mut flights = Flights::default();
        for (n, connection) in [(1_u8, 1), (2, 1), (1, 2), (3, 3)] {
            flights.begin(uid(u128::from(n) * 10 + u128::from(connection)), connection, key(n));
        }
        flights.give_up(&key(1), Some(2));
        assert_eq!((flights.has(uid(11)), flights.has(uid(12))), (true, false));
        flights.give_up(&key(2), None);
        assert!(!flights.has(uid(21)));
        flights.close(1);
        assert!(!flights.has(uid(11)));
        flights.end(uid(33));
        assert_eq!(flights, Flights::default());
    }
}
