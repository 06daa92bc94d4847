//! Pure: any batches at all, done by a store and by the model in memory.

use proptest::prelude::*;

use super::super::memory::Memory;
use super::super::{
    Event, Footprint, Outcome, Revision, Seen, Snapshot, Store, Txn, Versioned, Write,
};
use super::LOG;
use super::fixtures::{Fixture, Maker};

/// Replays a watch over a snapshot, as a replica does.
fn replay(snapshot: &mut Snapshot, event: Event) {
    snapshot.revision = event.revision;
    for (key, write) in event.changes {
        match write {
            Write::Put(value) | Write::Ephemeral(value) => {
                let revision = event.revision;
                snapshot.entries.insert(key, Versioned { value, revision });
            }
            Write::Delete => drop(snapshot.entries.remove(&key)),
        }
    }
}

fn any_txn() -> impl Strategy<Value = Txn> {
    let key = || prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned);
    let seen = prop_oneof![
        1 => Just(Seen::Absent),
        2 => (1..6_u64).prop_map(|revision| Seen::At(Revision(revision))),
    ];
    let write =
        prop_oneof![Just(Write::Delete), "[xy]".prop_map(|value| Write::Put(value.into())),];
    (
        prop::collection::btree_map(key(), seen, 0..2),
        prop::collection::btree_map(key(), write, 0..3),
    )
        .prop_map(|(compares, writes)| Txn { compares, writes, quiet: vec![] })
}

/// Members that do not meet: those that would are left out.
fn any_batch() -> impl Strategy<Value = Vec<Txn>> {
    prop::collection::vec(any_txn(), 0..4).prop_map(|mut batch| {
        let mut footprint = Footprint::default();
        batch.retain(|txn| footprint.add(txn).is_ok());
        batch
    })
}

/// What the model's revisions are in a store: it begins later, where others had it before.
struct Revisions(Vec<Revision>);

impl Revisions {
    /// The store's revision for the model's; one that is still to come, if the model has not had it.
    fn of(&self, model: Revision) -> Revision {
        let at = usize::try_from(model.0).unwrap();
        let known = at.checked_sub(1).and_then(|at| self.0.get(at));
        known.copied().unwrap_or(Revision(self.0.last().unwrap().0 + 1000 + model.0))
    }

    fn txn(&self, txn: &Txn) -> Txn {
        let seen = |seen: &Seen| match seen {
            Seen::Absent => Seen::Absent,
            Seen::At(revision) => Seen::At(self.of(*revision)),
        };
        let compares = txn.compares.iter().map(|(key, found)| (key.clone(), seen(found)));
        Txn { compares: compares.collect(), ..txn.clone() }
    }

    fn outcome(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Committed(revision) => Outcome::Committed(self.of(revision)),
            conflict @ Outcome::Conflict(_) => conflict,
        }
    }
}

/// Any store does with any batches what the model in memory does.
async fn agrees_with_the_model_on((store, _again): Fixture, batches: Vec<Vec<Txn>>) {
    let model = Memory::new(LOG);
    let mut replica = Snapshot::of(&*store, "").await.unwrap();
    let mut revisions = Revisions(vec![replica.revision]);
    let mut watch = store.watch(replica.revision).await.unwrap();
    for batch in batches {
        let translated = batch.iter().map(|txn| revisions.txn(txn)).collect();
        let outcomes = store.commit(translated).await.unwrap();
        let expected = model.commit(batch).await.unwrap();
        let found = Snapshot::of(&*store, "").await.unwrap();
        let mut modelled = Snapshot::of(&model, "").await.unwrap();
        if modelled.revision.0 > u64::try_from(revisions.0.len()).unwrap() {
            revisions.0.push(found.revision);
        }
        let expected: Vec<_> =
            expected.into_iter().map(|outcome| revisions.outcome(outcome)).collect();
        assert_eq!(outcomes, expected);
        while replica.revision < found.revision {
            replay(&mut replica, watch.next().await.unwrap());
        }
        let identity = crate::keys::STORE_ID;
        assert_eq!(replica, found, "the watch tells everything");
        modelled.revision = revisions.of(modelled.revision);
        for entry in modelled.entries.values_mut() {
            entry.revision = revisions.of(entry.revision);
        }
        modelled.entries.insert(identity.to_owned(), found.entries[identity].clone());
        assert_eq!(found, modelled);
    }
}

pub(super) fn run_against_the_model(maker: fn() -> Maker) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let make = maker();
    let batches = prop::collection::vec(any_batch(), 0..6);
    proptest!(ProptestConfig::with_cases(64), |(batches in batches)| {
        runtime.block_on(async { agrees_with_the_model_on(make().await, batches).await });
    });
}
