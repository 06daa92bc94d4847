//! Pure: what happened lately, of which a single look sees nothing.

use std::time::{Duration, SystemTime};

/// How long what happened is told.
const LATELY: Duration = Duration::from_secs(600);

/// From how many seconds on a clock has jumped: what keeps it right moves it by less.
const JUMP: u64 = 5;

/// Counts that only grow, and a clock, as they were at the last looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    clock: Option<(SystemTime, Duration)>,
    jumped: Option<(i64, Duration)>,
    pub(crate) refused: Growth,
    pub(crate) overruns: Growth,
}

/// A count that grows now and then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Growth {
    last: Option<u64>,
    grown: Option<(u64, Duration)>,
}

impl Growth {
    /// Takes in the count at a time since the agent started, and returns by how much it has grown lately.
    pub(crate) fn look(&mut self, count: u64, uptime: Duration) -> u64 {
        let more = self.last.map_or(0, |last| count.saturating_sub(last));
        self.last = Some(count);
        self.grown = self.grown.filter(|(_, at)| uptime.saturating_sub(*at) < LATELY);
        if more > 0 {
            let before = self.grown.map_or(0, |(grown, _)| grown);
            self.grown = Some((before + more, uptime));
        }
        self.grown.map_or(0, |(grown, _)| grown)
    }
}

impl Memory {
    /// Takes in both clocks, and returns by how many seconds the wall's jumped lately; negative if back.
    pub(crate) fn clocks(&mut self, wall: SystemTime, uptime: Duration) -> Option<i64> {
        if let Some((wall_before, before)) = self.clock.replace((wall, uptime)) {
            let due = wall_before + uptime.saturating_sub(before);
            let ahead = wall.duration_since(due);
            let seconds = match &ahead {
                Ok(ahead) => i64::try_from(ahead.as_secs()),
                Err(back) => i64::try_from(back.duration().as_secs()).map(|back| -back),
            };
            let jump = seconds.ok().filter(|seconds| seconds.unsigned_abs() >= JUMP);
            self.jumped = jump.map(|seconds| (seconds, uptime)).or(self.jumped);
        }
        self.jumped = self.jumped.filter(|(_, at)| uptime.saturating_sub(*at) < LATELY);
        self.jumped.map(|(seconds, _)| seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_clock_that_jumps_is_told_for_ten_minutes() {
        let mut memory = Memory::default();
        let wall = |at| SystemTime::UNIX_EPOCH + seconds(at);
        assert_eq!(memory.clocks(wall(1_000_000), seconds(0)), None);
        assert_eq!(memory.clocks(wall(1_000_034), seconds(30)), None, "it runs a little fast");
        assert_eq!(memory.clocks(wall(1_003_664), seconds(60)), Some(3600));
        assert_eq!(memory.clocks(wall(1_003_694), seconds(90)), Some(3600));
        assert_eq!(memory.clocks(wall(3_124), seconds(120)), Some(-1_000_600));
        assert_eq!(memory.clocks(wall(3_724), seconds(720)), None);
    }

    #[test]
    fn what_grows_is_told_for_ten_minutes_after_it_grew_last() {
        let mut growth = Growth::default();
        for (count, at, told) in [
            (70, 0, 0),
            (72, 30, 2),
            (72, 60, 2),
            (73, 90, 3),
            (73, 689, 3),
            (73, 690, 0),
            (1, 720, 0),
        ] {
            assert_eq!(growth.look(count, seconds(at)), told, "at {at} s");
        }
    }
}
