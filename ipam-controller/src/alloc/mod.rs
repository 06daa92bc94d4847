//! Pure: who gets which address: claims, ends, reservations.
//!
//! | file | decides |
//! |---|---|
//! | [`claim`] | what an interface of a container is given |
//! | [`blocks`] | which blocks hosts give back |
//! | [`ends`] | how it is given up, and how its host is asked |
//! | [`takeover`] | whether what a silent host holds can be had |
//! | [`wanted`] | whether an address or MAC address asked for can be had |
//! | [`full`] | what is said of pools that have no address left |
//! | [`quota`] | whether a namespace may have more |
//! | [`pick`] | which address of a pool is next |
//! | [`pools`] | which pool serves whom |
//! | [`reassert`] | what becomes of what a host says is alive |
//! | [`restored`] | whom a restored store waits for |
//! | [`retention`] | how long what nobody holds is kept |
//! | [`tenure`] | what history is told of an end |
//! | [`rename`] | which name a reservation is for from now on |
//! | [`sweep`] | which of a pool's reservations go at once |
//! | [`reserve`] | what operators reserve and release |
//! | [`release`] | the attachments that they end |

pub(crate) mod blocks;
pub(crate) mod claim;
pub(crate) mod ends;
mod full;
pub(crate) mod pick;
pub(crate) mod pools;
mod quota;
pub(crate) mod reassert;
pub(crate) mod release;
pub(crate) mod rename;
pub(crate) mod reserve;
pub(crate) mod restored;
pub(crate) mod retention;
pub(crate) mod sweep;
mod takeover;
pub(crate) mod tenure;
mod wanted;

#[cfg(test)]
mod pool_stories;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod reasserting;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod silences;

use limpet_api::book::AttachmentRef;

/// What a request needs an answer about before it can be decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome<T> {
    /// It is decided.
    Done(T),
    /// The host of this attachment is asked whether it is still there; decide again when it has
    /// ended, and for the last time when the patience is over.
    Asked(AttachmentRef),
}

/// Whether another host may still be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// There is time to ask.
    Left,
    /// The same, and this controller has not listened for long enough to say who is silent.
    Deaf,
    /// Whoever was asked has had its time.
    Over,
}
