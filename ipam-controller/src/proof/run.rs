//! Edge: runs of the simulated world: seeds, lengths, what went wrong in the fewest steps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::dice::{Dice, fresh_seed};
use super::step::{Mood, Step};
use super::world::{Setting, World};

/// How many steps a world lives, before it is let come to rest and another one is made.
const DAY: usize = 1_500;

/// Makes a new, empty store for a world.
pub(super) type Stores<'a> = dyn FnMut(u64) -> Setting + 'a;

/// What was tried.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) steps: usize,
    pub(super) idle: usize,
    pub(super) days: usize,
    pub(super) revisions: u64,
    pub(super) took: Duration,
    pub(super) counts: BTreeMap<String, usize>,
}

/// A number from the environment.
pub(super) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Runs days until so many steps were done; panics with the fewest steps that still go wrong.
pub(super) fn days(what: &str, steps: usize, stores: &mut Stores<'_>) -> Tried {
    let seed = number("LIMPET_PROOF_SEED").unwrap_or_else(fresh_seed);
    println!("{what}: LIMPET_PROOF_SEED={seed} LIMPET_PROOF_STEPS={steps}");
    let runtime =
        Arc::new(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let mut tried = Tried::default();
    let (began, mut dice) = (Instant::now(), Dice::new(seed));
    while tried.steps < steps {
        let day = dice.next();
        if let Err((steps, wrong)) = live(&runtime, day, stores, &mut tried) {
            let (fewest, wrong) = shrunk(&runtime, day, stores, (steps, wrong));
            let (_, story) = replay(&runtime, day, stores, &fewest, true);
            panic!(
                "{what}: {wrong}\nseed {seed}, day {day}, {} steps:\n{}",
                fewest.len(),
                story.join("\n")
            );
        }
        tried.days += 1;
    }
    tried.took = began.elapsed();
    println!("{what}: held through {tried:?}");
    tried
}

/// One world from its beginning to its rest.
fn live(
    runtime: &Arc<Runtime>,
    day: u64,
    stores: &mut Stores<'_>,
    tried: &mut Tried,
) -> Result<(), (Vec<Step>, String)> {
    let mut dice = Dice::new(day);
    let mood = Mood::new(&mut dice);
    let mut world = World::new(runtime, stores(day)).unwrap();
    let mut steps = Vec::new();
    let mut done = 0;
    while done < DAY {
        let step = mood.step(&mut dice);
        match world.step(step) {
            Ok(true) => {
                done += 1;
                steps.push(step);
            }
            Ok(false) => tried.idle += 1,
            Err(wrong) => {
                steps.push(step);
                return Err((steps, wrong));
            }
        }
    }
    let rested = world.settle_down();
    tried.steps += done;
    tried.revisions += world.model.revision.0;
    for (what, count) in world.counts {
        *tried.counts.entry(what).or_default() += count;
    }
    rested.map_err(|wrong| (steps, wrong))
}

/// Carries steps out again; returns what went wrong, and what was said meanwhile.
fn replay(
    runtime: &Arc<Runtime>,
    day: u64,
    stores: &mut Stores<'_>,
    steps: &[Step],
    tells: bool,
) -> (Option<String>, Vec<String>) {
    let mut world = World::new(runtime, stores(day)).unwrap();
    world.story = tells.then(Vec::new);
    let wrong = steps.iter().find_map(|step| world.step(*step).err());
    let wrong = wrong.or_else(|| world.settle_down().err());
    (wrong, world.story.unwrap_or_default())
}

/// Leaves steps out, larger parts first, for as long as something still goes wrong.
fn shrunk(
    runtime: &Arc<Runtime>,
    day: u64,
    stores: &mut Stores<'_>,
    (mut steps, mut wrong): (Vec<Step>, String),
) -> (Vec<Step>, String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut part = steps.len().div_ceil(2);
    while part > 0 {
        let (mut at, mut less) = (0, false);
        while at < steps.len() && Instant::now() < deadline {
            let end = (at + part).min(steps.len());
            let fewer: Vec<Step> = [&steps[..at], &steps[end..]].concat();
            if let (Some(again), _) = replay(runtime, day, stores, &fewer, false) {
                (steps, wrong, less) = (fewer, again, true);
            } else {
                at = end;
            }
        }
        if !less || part > 1 {
            part /= 2;
        }
    }
    (steps, wrong)
}
