//! Pure: which keys of etcd are this store's.

use super::options::Prefix;
use crate::keys;
use crate::store::{Key, end_of};

/// The version of the layout that this program writes, and the newest that it reads.
pub(super) const FORMAT: u64 = 1;

/// The names of keys in etcd.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    format: String,
    data: String,
}

impl Layout {
    /// Puts everything under a prefix.
    pub(super) fn new(prefix: &Prefix) -> Self {
        Self { format: format!("{prefix}/format"), data: format!("{prefix}/v{FORMAT}/") }
    }

    /// The key of the layout's version. It is beside what it is about, so that every version of
    /// this program finds it.
    pub(super) fn format(&self) -> &str {
        &self.format
    }

    /// The key of the store's identity.
    pub(super) fn identity(&self) -> String {
        self.key(keys::STORE_ID)
    }

    /// The key in etcd of a key of the store.
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.data)
    }

    /// The first key of the store after all that start with `prefix`, in etcd.
    pub(super) fn end_of(&self, prefix: &str) -> String {
        end_of(&self.key(prefix))
    }

    /// The key of the store that has this key in etcd; none if it has none.
    pub(super) fn own(&self, key: &[u8]) -> Option<Key> {
        let key = std::str::from_utf8(key).ok()?;
        key.strip_prefix(&self.data).map(str::to_owned)
    }

    /// Bytes that the names of keys take more in etcd.
    pub(super) fn extra(&self) -> usize {
        self.data.len()
    }
}
