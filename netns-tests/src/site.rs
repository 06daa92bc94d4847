//! Edge: a datacentre with one more host, whose agent is a unit of its systemd.

use crate::agent::Agent;
use crate::datacentre::Datacentre;
use crate::host::Host;
use crate::unit::Unit;

/// The addresses of the host.
const ADDRESSES: [&str; 2] = ["192.0.2.3/24", "2001:db8::3/64"];

/// A host whose agent is a unit, and the rest of a small datacentre.
#[derive(Debug)]
pub struct Site {
    /// The agent's unit.
    pub unit: Unit,
    /// Makes and deletes containers on it.
    pub agent: Agent,
    /// The host, which is `node-s`.
    pub host: Host,
    /// The rest.
    pub dc: Datacentre,
}

impl Site {
    /// Everything but the boot of the host.
    #[must_use]
    pub fn new() -> Self {
        let dc = Datacentre::small();
        let host = Host::with_systemd("node-s");
        dc.underlay.join(&host, "eth0", &ADDRESSES);
        let controller = format!("LIMPET_CONTROLLER={}", dc.controller.url());
        let unit = Unit::install(&host, "limpet-agent", &[&controller, "LIMPET_HOST=node-s"]);
        let agent = Agent::new(&host, &dc.controller.url(), "");
        Self { unit, agent, host, dc }
    }

    /// Boots the host, and waits until its agent says that it is ready.
    #[must_use]
    pub fn boot(self) -> Self {
        self.host.boot();
        self.unit.wait_active();
        self
    }

    /// Has the host shut down in its order and boots it again.
    pub fn reboot(&self) {
        self.host.reboot_in_order();
        self.dc.underlay.join(&self.host, "eth0", &ADDRESSES);
        self.host.boot();
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}
