//! Pure: whether what a caller is told is true: whether it held at some revision between the moment
//! the question was sent and the moment of the answer.

use std::net::IpAddr;

use limpet_api::book::Attachment;
use limpet_api::config::PoolState;
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::HostName;

use super::model::{Model, addresses_of};
use super::replica::Reply;
use super::request::{Answer, Request};
use crate::keys::ReservationKey;
use crate::records::Slot;
use crate::state::reservation_key;
use crate::store::Revision;

/// Checks an answer that was told when the store was at revision `to`.
pub(super) fn check(model: &Model, reply: &Reply, to: Revision) -> Result<(), String> {
    let asked = Asked { model, from: reply.sent, to };
    let verdict = match (&reply.result, &reply.request) {
        (Ok((Answer::Claimed(attachment), revision)), Request::Claim { .. }) => {
            asked.claimed(attachment, *revision)
        }
        (Ok((Answer::Done, revision)), Request::End { request, .. }) => {
            asked.at(*revision).and_then(|()| match model.alive(request.uid, *revision) {
                None => Ok(()),
                Some(life) => Err(format!("{} has not ended: {life:?}", request.uid)),
            })
        }
        (Ok((_, revision)), _) => asked.at(*revision),
        (Err(error), request) => asked.refused(request, error),
    };
    verdict.map_err(|why| format!("told what is not so: {why}; to {:?}", reply.request))
}

/// The revisions within which an answer must have been true.
struct Asked<'a> {
    model: &'a Model,
    from: Revision,
    to: Revision,
}

impl Asked<'_> {
    /// What is told must have held since it was asked, and be durable.
    fn at(&self, revision: Revision) -> Result<(), String> {
        if revision < self.from {
            return Err(format!("{revision} is older than {}, when it was asked", self.from));
        }
        if revision > self.to {
            return Err(format!("revision {revision} is not durable, the store is at {}", self.to));
        }
        Ok(())
    }

    fn claimed(&self, attachment: &Attachment, revision: Revision) -> Result<(), String> {
        let uid = attachment.uid;
        self.at(revision)?;
        let Some(life) = self.model.alive(uid, revision) else {
            return Err(format!(
                "{uid} was not there at {revision}: {:?}",
                self.model.lives.get(&uid)
            ));
        };
        if attachment.addresses != life.attachment.addresses {
            return Err(format!("{uid} has other addresses"));
        }
        if attachment.sticky {
            let key = key_of(attachment);
            let given: Vec<_> = addresses_of(attachment).collect();
            let kept = self.model.kept.get(&key);
            if !kept.is_some_and(|kept| {
                kept.within(revision, revision).any(|kept| kept.as_ref() == Some(&given))
            }) {
                return Err(format!("{uid} has not what is reserved for {}", key.name));
            }
        }
        Ok(())
    }

    fn ever<'b, T: 'b>(
        &self,
        since: Option<&'b super::model::Since<T>>,
        is: impl FnMut(&'b T) -> bool,
    ) -> bool {
        since.is_some_and(|since| since.within(self.from, self.to).any(is))
    }

    fn refused(&self, request: &Request, error: &ApiError) -> Result<(), String> {
        let so = match error.code {
            ErrorCode::Unavailable
            | ErrorCode::OutcomeUnknown
            | ErrorCode::HostSilent
            | ErrorCode::HostAlive
            | ErrorCode::HostNameTaken
            | ErrorCode::HostSuperseded => true,
            ErrorCode::SessionLost => self.session_lost(request),
            ErrorCode::PoolFull => self.full(),
            ErrorCode::NoPool => self.usage(|(_, state)| *state == PoolState::Draining),
            ErrorCode::ReservationHeld | ErrorCode::ReservationInUse => {
                reservation_of(request).is_some_and(|key| self.is_held(&key))
            }
            ErrorCode::ReservationMismatch | ErrorCode::ReservationExists => {
                reservation_of(request)
                    .is_some_and(|key| self.ever(self.model.kept.get(&key), Option::is_some))
            }
            ErrorCode::ReservationNotFound => reservation_of(request).is_some_and(|key| {
                let kept = self.model.kept.get(&key);
                let is_new = kept.is_none_or(|kept| kept.began_after(self.from));
                is_new || self.ever(kept, Option::is_none)
            }),
            ErrorCode::AttachmentPresent => match request {
                Request::Claim { key, request } => {
                    let other = |uid: &Option<_>| uid.is_some_and(|uid| uid != request.uid);
                    self.ever(self.model.attached.get(key), other)
                }
                Request::Remove { attachment, .. } => {
                    let same = |uid: &Option<_>| *uid == Some(attachment.uid);
                    self.ever(self.model.attached.get(&attachment.key), same)
                }
                _ => false,
            },
            ErrorCode::HostNotFound => matches!(request, Request::Reinstalled { .. }),
            ErrorCode::AttachmentNotFound => matches!(request, Request::Remove { .. }),
            ErrorCode::AddressHeld => match request {
                Request::Reserve { address: Some(address), .. } => self.is_taken(address),
                Request::Claim { request, .. } => {
                    request.wanted.addresses.iter().any(|address| self.is_taken(address))
                }
                _ => false,
            },
            ErrorCode::PoolOverlaps
            | ErrorCode::PoolExists
            | ErrorCode::PoolInUse
            | ErrorCode::PoolNotFound => {
                matches!(
                    request,
                    Request::Pool { .. } | Request::PoolGone { .. } | Request::Drain { .. }
                )
            }
            _ => false,
        };
        so.then_some(()).ok_or_else(|| error.to_string())
    }

    fn session_lost(&self, request: &Request) -> bool {
        let lost = |host: &HostName, token| {
            self.ever(self.model.sessions.get(host), |session| *session != Some(token))
        };
        match request {
            Request::Claim { key, request } => lost(&key.host, request.session),
            Request::End { key, request } => lost(&key.host, request.session),
            Request::Present { host, session, .. } | Request::Beat { host, session } => {
                lost(host, *session)
            }
            _ => false,
        }
    }

    fn usage(&self, is: impl Fn(&(usize, PoolState)) -> bool) -> bool {
        self.model.usage.within(self.from, self.to).any(|usage| usage.values().any(&is))
    }

    fn full(&self) -> bool {
        self.model.usage.within(self.from, self.to).any(|usage| {
            usage.iter().any(|(name, (taken, _))| {
                let pool = self.model.pools.get(name);
                pool.is_none_or(|pool| *taken >= size_of(pool))
            })
        })
    }

    fn is_taken(&self, address: &IpAddr) -> bool {
        self.ever(self.model.holders.get(address), Slot::is_taken)
    }

    fn is_held(&self, key: &ReservationKey) -> bool {
        let Some(kept) = self.model.kept.get(key) else { return false };
        let kept: Vec<_> = kept.within(self.from, self.to).flatten().flatten().collect();
        kept.into_iter().any(|address| {
            self.ever(self.model.holders.get(address), |slot| slot.attachment.is_some())
        })
    }
}

/// The reservation that a request is about.
fn reservation_of(request: &Request) -> Option<ReservationKey> {
    match request {
        Request::Claim { key, request } => {
            let name = request.wanted.name.as_ref()?;
            Some(reservation_key(&key.network, &request.wanted.namespace, name))
        }
        Request::Reserve { key, .. } | Request::Release { key } => Some(key.clone()),
        _ => None,
    }
}

fn key_of(attachment: &Attachment) -> ReservationKey {
    reservation_key(&attachment.key.network, &attachment.namespace, &attachment.name)
}

/// How many addresses a pool can give.
fn size_of(pool: &limpet_api::config::Pool) -> usize {
    usize::try_from(crate::givable::Givable::of(pool).size()).unwrap_or(usize::MAX)
}
