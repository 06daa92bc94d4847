//! Pure: the steps of a schedule. Each is small: between any two anything else can happen.

use super::dice::Dice;

/// What can happen next in the simulated world.
///
/// Which host, container, message or controller is meant, the step's numbers say; they count
/// modulo what there is, so that any list of steps can be carried out. A step that makes no sense
/// just then does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A container is started: ADD.
    Start,
    /// A plugin makes its interface.
    Make,
    /// A plugin confirms its interface.
    Confirm,
    /// A plugin is killed.
    KillPlugin,
    /// A container ends by itself, with its namespace.
    Stop,
    /// DEL.
    Delete,
    /// DEL, whose word for the agent comes late.
    LateDelete,
    /// The late word of a DEL comes.
    Tell,
    /// The late word of a DEL comes, and will come again.
    TellTwice,
    /// An agent is started.
    StartAgent,
    /// An agent is killed.
    KillAgent,
    /// A machine is switched off and on.
    Reboot,
    /// An agent asks for a session.
    Open,
    /// An agent says that it is alive.
    Beat,
    /// An agent hears of the cluster from a controller.
    Hear,
    /// An agent begins to look at the interfaces.
    Look,
    /// The kernel lists them.
    Found,
    /// The kernel lists them, and fails halfway.
    FoundShort,
    /// An agent judges by what it found, also when GC told it to.
    Judge,
    /// An agent ends what it has listed for its end.
    EndAll,
    /// An agent sends its claims again.
    Resend,
    /// An agent's patience with a claim is over.
    GiveUp,
    /// A request reaches a controller.
    Deliver,
    /// An answer reaches its agent.
    Answer,
    /// A request or an answer is lost, which its sender notices.
    Lose,
    /// A sender gives up while its request is under way; it is delivered later.
    Forsake,
    /// A host is cut off.
    CutOff,
    /// It is reached again.
    Reach,
    /// A controller decides.
    Decide,
    /// A controller's batch is committed.
    Commit,
    /// A controller's batch is refused.
    NotDone,
    /// A controller's batch is committed, and it is not told.
    Untold,
    /// A controller's batch is under way, perhaps for ever, and it is not told.
    Adrift,
    /// A batch adrift arrives.
    Arrive,
    /// A controller hears of one change of the store.
    Sync,
    /// A controller hears of all changes of the store.
    SyncAll,
    /// A controller stands still.
    Freeze,
    /// It goes on.
    Thaw,
    /// A controller is killed and started again.
    Restart,
    /// A controller's lease is revoked while it lives.
    Lapse,
    /// A controller's clock says that a period has begun.
    Tick,
    /// A controller clears something away.
    Clear,
    /// Time passes, second by second.
    Time,
    /// Time passes at once: nobody did anything meanwhile.
    Leap,
    /// An operator reserves.
    Reserve,
    /// An operator releases.
    Release,
    /// An operator ends an attachment.
    Remove,
    /// An operator drains a pool, or lets it give again.
    Drain,
    /// An operator makes a pool, perhaps over another one.
    Pool,
    /// An operator removes a pool.
    PoolGone,
    /// An operator says that a host was installed anew.
    Reinstalled,
    /// A copy of a machine joins.
    Clone,
}

/// How often each kind of step is thrown: what moves things on, far more often than what
/// breaks them.
const USUAL: [(Kind, u16); 51] = [
    (Kind::Start, 80),
    (Kind::Make, 60),
    (Kind::Confirm, 60),
    (Kind::KillPlugin, 2),
    (Kind::Stop, 10),
    (Kind::Delete, 24),
    (Kind::LateDelete, 10),
    (Kind::Tell, 6),
    (Kind::TellTwice, 2),
    (Kind::StartAgent, 30),
    (Kind::KillAgent, 2),
    (Kind::Reboot, 1),
    (Kind::Open, 30),
    (Kind::Beat, 3),
    (Kind::Hear, 30),
    (Kind::Look, 12),
    (Kind::Found, 24),
    (Kind::FoundShort, 1),
    (Kind::Judge, 24),
    (Kind::EndAll, 16),
    (Kind::Resend, 16),
    (Kind::GiveUp, 2),
    (Kind::Deliver, 260),
    (Kind::Answer, 200),
    (Kind::Lose, 4),
    (Kind::Forsake, 3),
    (Kind::CutOff, 2),
    (Kind::Reach, 20),
    (Kind::Decide, 200),
    (Kind::Commit, 240),
    (Kind::NotDone, 2),
    (Kind::Untold, 4),
    (Kind::Adrift, 3),
    (Kind::Arrive, 3),
    (Kind::Sync, 40),
    (Kind::SyncAll, 40),
    (Kind::Freeze, 3),
    (Kind::Thaw, 20),
    (Kind::Restart, 2),
    (Kind::Lapse, 2),
    (Kind::Tick, 6),
    (Kind::Clear, 3),
    (Kind::Time, 10),
    (Kind::Leap, 1),
    (Kind::Reserve, 3),
    (Kind::Release, 4),
    (Kind::Remove, 3),
    (Kind::Drain, 2),
    (Kind::Pool, 1),
    (Kind::PoolGone, 1),
    (Kind::Reinstalled, 1),
];

/// A step: what happens, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) kind: Kind,
    pub(super) numbers: [usize; 3],
}

/// What kind of day it is: which steps happen, and how often. Faults that all happen all the time
/// hide each other, so each day has some of them only.
#[derive(Debug)]
pub(super) struct Mood {
    kinds: Vec<Kind>,
}

impl Mood {
    /// Throws a mood.
    pub(super) fn new(dice: &mut Dice) -> Self {
        let mut kinds = Vec::new();
        for (kind, often) in USUAL.into_iter().chain([(Kind::Clone, 1)]) {
            let is_rare = often <= 6;
            let factor = match dice.below(6) {
                0 | 1 if is_rare => 0,
                2 => 3,
                _ => 1,
            };
            kinds.extend(std::iter::repeat_n(kind, usize::from(often) * factor));
        }
        Self { kinds }
    }

    /// Throws a step.
    pub(super) fn step(&self, dice: &mut Dice) -> Step {
        let kind = self.kinds[dice.below(self.kinds.len())];
        let number = |dice: &mut Dice| dice.below(1 << 12);
        Step { kind, numbers: [number(dice), number(dice), number(dice)] }
    }
}
