//! Edge: what happens to limpet's programs while traffic runs: each is killed, replaced, frozen or left without the others.

use std::thread;
use std::time::Duration;

use crate::agent::Agent;
use crate::datacentre::Datacentre;

/// One thing that happens, to its end: afterwards all runs as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upheaval {
    /// Every agent is killed, and started again after a while.
    Killed,
    /// Every agent is stopped in an orderly way and started again.
    Restarted,
    /// Every agent stands still for a while.
    Frozen,
    /// Every agent's file is replaced by another one, and the agent started again.
    Upgraded,
    /// The controller is killed, and started again after a while.
    ControllerAway,
    /// The store is killed, and started again after a while.
    StoreAway,
    /// All of it in each other's midst.
    All,
}

impl Upheaval {
    /// All of them.
    pub const EACH: [Self; 7] = [
        Self::Killed,
        Self::Restarted,
        Self::Frozen,
        Self::Upgraded,
        Self::ControllerAway,
        Self::StoreAway,
        Self::All,
    ];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Restarted => "restarted",
            Self::Frozen => "frozen",
            Self::Upgraded => "upgraded",
            Self::ControllerAway => "controller-away",
            Self::StoreAway => "store-away",
            Self::All => "all",
        }
    }

    /// Lets it happen; what is away is away for `pause`.
    pub fn happen(self, dc: &mut Datacentre, pause: Duration) {
        let rest = || thread::sleep(pause);
        match self {
            Self::Killed => {
                all(dc, Agent::kill);
                rest();
                all(dc, Agent::start);
            }
            Self::Restarted => all(dc, |agent| {
                agent.stop();
                agent.start();
            }),
            Self::Frozen => {
                all(dc, |agent| agent.freeze());
                rest();
                all(dc, |agent| agent.thaw());
            }
            Self::Upgraded => all(dc, |agent| {
                agent.replace_program();
                agent.stop();
                agent.start();
            }),
            Self::ControllerAway => {
                dc.controller.kill();
                rest();
                dc.controller.resume();
            }
            Self::StoreAway => {
                dc.controller.kill_etcd();
                rest();
                dc.controller.resume_etcd();
            }
            Self::All => {
                dc.controller.kill_etcd();
                dc.a.freeze();
                dc.b.kill();
                dc.controller.kill();
                rest();
                // With nobody to tell it anything, and its kernel as it was left.
                dc.b.start_alone();
                dc.a.thaw();
                dc.a.replace_program();
                dc.a.stop();
                dc.a.start_alone();
                if let Some(metal) = &mut dc.metal {
                    metal.kill();
                    metal.start_alone();
                }
                rest();
                dc.controller.resume_etcd();
                dc.controller.resume();
            }
        }
        for agent in dc.agents() {
            agent.await_joined();
        }
        // What an agent finds to do when it is back it does within its first rounds.
        rest();
    }
}

fn all(dc: &mut Datacentre, act: impl Fn(&mut Agent)) {
    let Datacentre { a, b, metal, gateway, .. } = dc;
    for agent in [Some(a), Some(b), metal.as_mut(), gateway.as_mut()].into_iter().flatten() {
        act(agent);
    }
}
