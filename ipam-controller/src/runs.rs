//! Pure: a set of numbers as its runs: who looks for one that is not in it goes over a run of any
//! length in one step.

use std::collections::BTreeMap;

/// Numbers, kept as the first and the last of each longest run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs(BTreeMap<u128, u128>);

impl Runs {
    /// Returns the first and the last number of the run that a number is in.
    pub(crate) fn around(&self, number: u128) -> Option<(u128, u128)> {
        let (&first, &last) = self.0.range(..=number).next_back()?;
        (number <= last).then_some((first, last))
    }

    /// Puts a number in; it may be there already.
    pub(crate) fn insert(&mut self, number: u128) {
        if self.around(number).is_some() {
            return;
        }
        let before = number.checked_sub(1).and_then(|before| self.around(before));
        let after = number.checked_add(1).and_then(|after| self.around(after));
        if let Some((first, _)) = after {
            self.0.remove(&first);
        }
        let first = before.map_or(number, |(first, _)| first);
        self.0.insert(first, after.map_or(number, |(_, last)| last));
    }

    /// Takes a number out, if it is there.
    pub(crate) fn remove(&mut self, number: u128) {
        let Some((first, last)) = self.around(number) else { return };
        self.0.remove(&first);
        if first < number {
            self.0.insert(first, number - 1);
        }
        if number < last {
            self.0.insert(number + 1, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Few numbers, at both ends of all there are.
    fn number() -> impl Strategy<Value = u128> {
        prop_oneof![0..8_u128, (u128::MAX - 7)..=u128::MAX]
    }

    proptest! {
        #[test]
        fn runs_are_the_numbers_that_were_put_in_and_not_taken_out(
            steps in vec((any::<bool>(), number()), 0..40),
        ) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (puts, number) in steps {
                if puts {
                    runs.insert(number);
                    set.insert(number);
                } else {
                    runs.remove(number);
                    set.remove(&number);
                }
            }
            for number in (0..9).chain(u128::MAX - 8..=u128::MAX) {
                let Some((first, last)) = runs.around(number) else {
                    prop_assert!(!set.contains(&number));
                    continue;
                };
                prop_assert!((first..=last).all(|number| set.contains(&number)));
                prop_assert!(first.checked_sub(1).is_none_or(|before| !set.contains(&before)));
                prop_assert!(last.checked_add(1).is_none_or(|after| !set.contains(&after)));
            }
        }
    }
}
