//! Edge: how things stand with the agent: what its socket answers, and `limpet-agent status`, which prints it.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use limpet_api::book::Attachment;
use limpet_api::client::{Call, Connection, Endpoint, Method};
use limpet_api::paths;
use limpet_api::socket::{AgentStatus, SeveredContainer, SnapshotUse};
use tokio::time::Instant;

use crate::agent::{Agent, not_joined};
use crate::config::Config;
use crate::recalled::Stance;
use crate::saved::ago;
use crate::veths::{VethError, Veths};
use crate::view::Key;

/// How long the agent has for its answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What the socket answers.
pub(crate) async fn status(agent: &Agent, veths: &Veths) -> Result<AgentStatus, VethError> {
    let interfaces = veths.interfaces().await?;
    let pass = agent.passes.borrow().clone();
    let joined = agent.session().is_ok();
    let state = agent.state();
    let severed = interfaces.into_iter().filter(|(_, interface)| interface.severed);
    let severed = severed.map(|(uid, interface)| SeveredContainer {
        uid,
        ifname: interface.name,
        attachment: state.records.get(&uid).map(|record| record.attachment.key.clone()),
        why: state.severed.get(&uid).map_or("by an earlier agent", String::as_str).to_owned(),
    });
    let severed = severed.collect();
    let (store, revision) = state.view.resumption().unzip();
    let (host, now) = (&agent.identity.host, Instant::now());
    let recalled = state.recalled_words(host, now);
    let snapshot = state.recalled.map(|recalled| SnapshotUse {
        age_seconds: recalled.age(now).as_secs(),
        followed: state.stance(host) == Stance::Recalled,
    });
    // Of those of an earlier boot the containers are gone; a controller that answers is told so.
    let here = |(_, attachment): &(&Key, &Attachment)| {
        snapshot.is_none() || attachment.boot == agent.identity.boot
    };
    let attachments = state.view.attachments().filter(here).count();
    let not_saved = state.not_saved.as_ref().map(|error| {
        let path = agent.snapshots.path().display();
        format!(
            "cannot write the snapshot {path}, without which a reboot needs a controller: {error}"
        )
    });
    let absent = (!joined || state.contact.silent.is_some()).then(|| not_joined(&state).message);
    Ok(AgentStatus {
        host: agent.identity.host.clone(),
        controller: agent.streams().endpoint().map(ToString::to_string).unwrap_or_default(),
        joined,
        store,
        revision,
        snapshot,
        attachments,
        severed,
        severed_ever: state.severed_ever,
        problems: absent
            .into_iter()
            .chain(recalled)
            .chain(not_saved)
            .chain(state.not_asserted.clone())
            .chain(pass.failures)
            .chain(pass.problems)
            .collect(),
    })
}

/// Asks the running agent and prints what it says.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let endpoint = Endpoint::Unix(config.socket);
    let mut connection = Connection::open(&endpoint, LIMIT).await.context("asking the agent")?;
    let call = Call::new(Method::GET, paths::route::SOCKET_STATUS);
    let status: AgentStatus = connection.call(&call, LIMIT).await.context("asking the agent")?;
    match io::stdout().write_all(render(&status).as_bytes()) {
        // That nobody reads on is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to stdout")
        }
        _ => Ok(()),
    }
}

/// One fact a line.
fn render(status: &AgentStatus) -> String {
    let known = match (status.revision, status.store) {
        (Some(revision), Some(store)) => format!("revision {revision} of store {store}"),
        _ => "nothing yet".to_owned(),
    };
    let known = status.snapshot.as_ref().map_or(known.clone(), |snapshot| {
        format!("{known}, by its snapshot from {}", ago(Duration::from_secs(snapshot.age_seconds)))
    });
    let mut lines = vec![
        format!("host         {}", status.host),
        format!("joined       {}", if status.joined { "yes" } else { "no" }),
        format!("controller   {}", status.controller),
        format!("knows        {known}"),
        format!("attachments  {}", status.attachments),
        format!(
            "severed      {} now, {} since the agent started",
            status.severed.len(),
            status.severed_ever
        ),
    ];
    for severed in &status.severed {
        let of = severed.attachment.as_ref().map_or_else(String::new, |key| {
            format!(" of container {} on network {}", key.container, key.network)
        });
        lines.push(format!("  {} {}{of}: {}", severed.ifname, severed.uid, severed.why));
    }
    lines.push(format!("problems     {}", status.problems.len()));
    lines.extend(status.problems.iter().map(|problem| format!("  {problem}")));
    // Parts of it come from the network: no control character of theirs reaches the terminal.
    let harmless = |line: String| line.chars().filter(|c| !c.is_control()).chain(['\n']).collect();
    lines.into_iter().map(harmless).collect::<Vec<String>>().concat()
}

#[cfg(test)]
mod tests {
    use limpet_net_types::Token;

    use super::*;
    use crate::fixture;

    #[test]
    fn a_status_has_one_fact_a_line() {
        let severed = SeveredContainer {
            uid: Token::from_bits(7),
            ifname: "lc0123456789a".to_owned(),
            attachment: Some(fixture::attachment(1, 7).key),
            why: "its addresses are another's\u{1b}: c1 on host node-b".to_owned(),
        };
        let status = AgentStatus {
            host: "node-a".parse().unwrap(),
            controller: "http://192.0.2.200:7600".to_owned(),
            joined: true,
            store: Some(Token::from_bits(1)),
            revision: Some(40),
            snapshot: None,
            attachments: 3,
            severed: vec![severed],
            severed_ever: 2,
            problems: vec!["network n1 has no device".to_owned()],
        };
        assert_eq!(
            render(&status),
            "host         node-a\n\
             joined       yes\n\
             controller   http://192.0.2.200:7600\n\
             knows        revision 40 of store 00000000000000000000000000000001\n\
             attachments  3\n\
             severed      1 now, 2 since the agent started\n  \
               lc0123456789a 00000000000000000000000000000007 of container c1 on network n1: \
             its addresses are another's: c1 on host node-b\n\
             problems     1\n  \
               network n1 has no device\n"
        );
    }
}
