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

    /// The incarnations that are being made for a key by a connection.
    pub(crate) fn of<'a>(
        &'a self,
        key: &'a Key,
        connection: ConnectionId,
    ) -> impl Iterator<Item = Uid> + 'a {
        let own = move |(by, of): &(ConnectionId, Key)| *by == connection && of == key;
        self.0.iter().filter(move |(_, flight)| own(flight)).map(|(uid, _)| *uid)
    }
}
