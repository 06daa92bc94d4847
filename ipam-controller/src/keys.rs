//! Pure: keys of the store.

/// The identity of the store, made with it.
pub(crate) const STORE_ID: &str = "meta/store-id";
