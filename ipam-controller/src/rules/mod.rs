//! Pure: what networks, pools and hosts may be beside each other.
//!
//! A PUT of what is there already is a success that changes nothing, so that repeating one is
//! safe. Every change compares and puts one common key, so that two that are right only without
//! each other cannot both be made.

pub(crate) mod hosts;
pub(crate) mod networks;
pub(crate) mod pools;
pub(crate) mod quotas;
pub(crate) mod reports;
pub(crate) mod resize;
pub(crate) mod sessions;
pub(crate) mod silence;
pub(crate) mod spaces;
