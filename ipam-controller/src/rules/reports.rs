//! Pure: questions to hosts about their kernels, and their answers. They pass through the store,
//! because a host may speak to another controller than the one that asks.

use std::collections::BTreeMap;

use limpet_api::doctor::Health;
use limpet_api::host::{Finding, Report, ReportWanted};
use limpet_net_types::{HostName, Token};
use serde::{Deserialize, Serialize};

use crate::alloc::claim::session;
use crate::draft::Decision;
use crate::keys::Subject;
use crate::state::State;

/// A question to a host, and its answer once there is one; it goes with the controller that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    /// The question.
    pub(crate) wanted: ReportWanted,
    /// What the host reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<Answer>,
}

/// What a host reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Where its kernel differs from the store.
    pub(crate) findings: Vec<Finding>,
    /// How many more differences there are.
    #[serde(default)]
    pub(crate) more: u64,
    /// How it is otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<Box<Health>>,
}

/// Asks a host.
pub(crate) fn ask(state: &State, host: &HostName, wanted: &ReportWanted) -> Decision<()> {
    Decision::make(|draft| {
        // A host that has gone meanwhile will not answer.
        if state.host(host).is_some() {
            let question = Question { wanted: wanted.clone(), answer: None };
            draft.put_ephemeral(&Subject::Report(host.clone(), wanted.id), &question);
        }
        Ok(())
    })
}

/// Takes a host's answer in; one that nobody waits for any more is dropped.
pub(crate) fn answer(state: &State, host: &HostName, report: &Report) -> Decision<()> {
    Decision::make(|draft| {
        session(state, draft, host, report.session)?;
        let subject = Subject::Report(host.clone(), report.id);
        let question = state.question(host, report.id);
        draft.rely(&subject, question);
        if let Some(question) = question {
            let wanted = question.record.wanted.clone();
            let (findings, health) = (report.findings.clone(), report.health.clone());
            let answer = Answer { findings, more: report.more, health };
            draft.put_ephemeral(&subject, &Question { wanted, answer: Some(answer) });
        }
        Ok(())
    })
}

/// Takes a question back.
pub(crate) fn withdraw(state: &State, host: &HostName, id: Token) -> Decision<()> {
    Decision::make(|draft| {
        if state.question(host, id).is_some() {
            draft.delete(&Subject::Report(host.clone(), id));
        }
        Ok(())
    })
}

/// The answers to a question, by host.
pub(crate) fn answers(state: &State, id: Token) -> BTreeMap<HostName, Answer> {
    let questions = state.questions().filter(|((_, of), _)| *of == id);
    questions
        .filter_map(|((host, _), entry)| Some((host.clone(), entry.record.answer.clone()?)))
        .collect()
}
