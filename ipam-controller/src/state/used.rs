//! Pure: how many addresses each namespace has, of each pool.
//!
//! They are counted where attachments and reservations are put and taken out, whatever comes first: what an
//! attachment holds and its name keeps is in both, and the attachment says so.

use std::collections::BTreeMap;

use limpet_api::book::{Attachment, Held, Reservation};
use limpet_net_types::{Namespace, PoolName};

/// Addresses of a namespace, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// Held by attachments.
    pub(crate) held: u64,
    /// Reserved and not held.
    pub(crate) reserved: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    held: u64,
    kept: u64,
    /// Held by attachments that say that their name keeps them.
    both: u64,
}

impl Counts {
    fn add(&mut self, more: Self, by: i64) {
        let add = |counter: &mut u64, more: u64| {
            *counter = counter.saturating_add_signed(by.saturating_mul(more.cast_signed()));
        };
        add(&mut self.held, more.held);
        add(&mut self.kept, more.kept);
        add(&mut self.both, more.both);
    }
}

/// The counts of all namespaces that have any address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Used(BTreeMap<Namespace, BTreeMap<PoolName, Counts>>);

impl Used {
    /// Counts an attachment that is there from now on, or not any more: `by` is 1 or -1.
    pub(super) fn count_attachment(&mut self, attachment: &Attachment, by: i64) {
        let each = Counts { held: 1, kept: 0, both: u64::from(attachment.sticky) };
        self.count(&attachment.namespace, &attachment.addresses, each, by);
    }

    /// The same of a reservation.
    pub(super) fn count_reservation(&mut self, reservation: &Reservation, by: i64) {
        let each = Counts { kept: 1, ..Counts::default() };
        self.count(&reservation.namespace, &reservation.addresses, each, by);
    }

    fn count(&mut self, namespace: &Namespace, addresses: &[Held], each: Counts, by: i64) {
        let pools = self.0.entry(namespace.clone()).or_default();
        for held in addresses {
            let counts = pools.entry(held.pool.clone()).or_default();
            counts.add(each, by);
            if *counts == Counts::default() {
                pools.remove(&held.pool);
            }
        }
        if pools.is_empty() {
            self.0.remove(namespace);
        }
    }

    /// What a namespace has in all pools together.
    pub(super) fn of(&self, namespace: &Namespace) -> Use {
        let mut sum = Counts::default();
        self.0.get(namespace).into_iter().flat_map(BTreeMap::values).for_each(|c| sum.add(*c, 1));
        told(sum)
    }

    /// What each namespace has of a pool. Looks at every namespace that has an address.
    pub(super) fn in_pool<'a>(
        &'a self,
        pool: &'a PoolName,
    ) -> impl Iterator<Item = (&'a Namespace, Use)> {
        self.0.iter().filter_map(|(namespace, pools)| Some((namespace, told(*pools.get(pool)?))))
    }
}

fn told(counts: Counts) -> Use {
    Use { held: counts.held, reserved: counts.kept.saturating_sub(counts.both) }
}
