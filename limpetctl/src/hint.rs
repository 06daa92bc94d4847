//! Pure: what to do about an error, where that is known.

use limpet_api::ErrorCode;
use limpet_api::client::ClientError;

use crate::find::FindError;
use crate::network::NoNetwork;

/// The advice for an error, if there is any.
pub(crate) fn of(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return of_client(error);
        }
        if let Some(error) = cause.downcast_ref::<FindError>() {
            return Some(of_find(error));
        }
        cause.downcast_ref::<NoNetwork>().map(|error| match error {
            NoNetwork::None => "create one: limpetctl network create <name>",
            NoNetwork::Several(_) => "say which with --network",
        })
    })
}

fn of_client(error: &ClientError) -> Option<&'static str> {
    match error {
        ClientError::Connect { .. } => Some(
            "is limpet-controller running there? --controller or LIMPET_CONTROLLER says where it is",
        ),
        ClientError::TimedOut { .. } | ClientError::Broken { .. } | ClientError::Left { .. } => {
            Some(
                "a change may have been made all the same: look before you repeat it; --timeout waits longer",
            )
        }
        ClientError::Garbage { .. } => {
            Some("is it a limpet-controller that listens there, and of this version?")
        }
        ClientError::Request(_) => None,
        ClientError::Refused(error) => of_code(error.code),
    }
}

fn of_find(error: &FindError) -> &'static str {
    match error {
        FindError::Nothing { .. } => "see what there is: leave the verb out",
        FindError::Several { what: "attachment", .. } => {
            "narrow it down with --namespace, --network, --host or --ifname"
        }
        FindError::Several { .. } => "narrow it down with --namespace or --network",
    }
}

/// The advice for what a controller refuses.
fn of_code(code: ErrorCode) -> Option<&'static str> {
    use ErrorCode as E;
    Some(match code {
        E::StoreInUse => {
            "give the controller an empty store; what is in this one: limpetctl restore status"
        }
        E::BackupInvalid => "nothing was changed; a file of a newer limpet needs that version",
        E::StoreRestoring => {
            "if no restore is running, repeat it with the same file, or: limpetctl restore discard"
        }
        E::StoreRestored => "for whom it waits: limpetctl restore status",
        E::NetworkNotFound => "see what there is: limpetctl network",
        E::PoolNotFound => "see what there is: limpetctl pool",
        E::HostNotFound => "see what there is: limpetctl host",
        E::ReservationNotFound => {
            "see what there is: limpetctl reservation; a workload without a namespace is in _"
        }
        E::AttachmentNotFound => "it may have ended in the meantime: limpetctl attachment",
        E::NetworkExists => {
            "see it: limpetctl network show <name>; change it: limpetctl network set"
        }
        E::PoolExists => "see it: limpetctl pool show <name>; change it: limpetctl pool set",
        E::HostExists => "see it: limpetctl host show <name>; change it: limpetctl host set",
        E::ReservationExists => {
            "see it: limpetctl reservation show <name>; other addresses need a release first"
        }
        E::Immutable => "create another one beside it, move over, and delete this one",
        E::VniTaken => "leave --vni out, and the smallest free one is taken",
        E::NetworksFull => "delete a network that is not used any more",
        E::NetworkInUse => {
            "what it has and who names it: limpetctl network delete <name>, without --yes"
        }
        E::PoolInUse => {
            "drain it first: limpetctl pool drain <name> says who still has addresses; then release what \
             nobody holds: limpetctl reservation release --pool <name>"
        }
        E::HostInUse => "move its containers away first: limpetctl attachment --host <name>",
        E::ReservationInUse | E::NameInUse => {
            "stop its container first: limpetctl attachment show <name>"
        }
        E::AttachmentPresent => "stop the container on its host; its end releases the addresses",
        E::HostAlive => "see when it was heard of: limpetctl host show <name>",
        E::HostSilent => "see whether the host's agent is alive: limpetctl host show <name>",
        E::PoolOverlaps => "see all ranges: limpetctl pool",
        E::SpacesOverlap => {
            "see what a host is a member of: limpetctl host show <name>; change it: limpetctl host set <name> --networks"
        }
        E::HostNotMember => "see what it is a member of: limpetctl host show <name>",
        E::PoolContainsHost => {
            "see all hosts' addresses: limpetctl host; take a range that no machine and no gateway's \
             network uses, or split this one into pools around them"
        }
        E::PoolEmpty => "exclude less, or take a larger range",
        E::PoolFull => "see its use: limpetctl pool; release what is not needed, or add a pool",
        E::QuotaExceeded => {
            "see its use: limpetctl quota; release what is not needed, or raise it: limpetctl quota set"
        }
        E::QuotaNotFound => "see what there is: limpetctl quota",
        E::NoPool => {
            "see who may use which: limpetctl pool; a pool without a rule serves everybody"
        }
        E::AddressHeld => {
            "see the holder: limpetctl attachment show <address> or limpetctl reservation show <address>"
        }
        E::AddressNotInPool => "see all ranges and exclusions: limpetctl pool show <name>",
        E::ReservationMismatch | E::ReservationHeld => {
            "see who has what: limpetctl reservation show <name>"
        }
        E::MacHeld => "leave --mac out, and one is derived",
        E::HostNameTaken => {
            "stop the agent that is alive under this name, and ask again 15 s later: limpetctl host"
        }
        E::HostAddressConflict => {
            "see all hosts' addresses: limpetctl host; all pools': limpetctl pool"
        }
        E::Unavailable | E::TimedOut => "try again; the controller's log says what it waits for",
        E::OutcomeUnknown => "look whether the change was made before you repeat it",
        E::Internal => "this is a defect: the controller's log says more",
        E::NotFound | E::MethodNotAllowed | E::Unknown => {
            "are limpetctl and the controller of the same version? limpetctl --version"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use limpet_api::ApiError;

    #[test]
    fn each_refusal_that_an_operator_can_meet_has_a_hint() {
        let none: Vec<&str> = ErrorCode::ALL
            .iter()
            .filter(|code| of_code(**code).is_none())
            .map(|code| code.as_str())
            .collect();
        // The message of these says all, or only agents and plugins meet them.
        assert_eq!(
            none,
            [
                "bad-request",
                "too-large",
                "invalid",
                "host-superseded",
                "session-lost",
                "role-missing",
                "controller-unreachable",
                "not-joined",
                "network-not-ready",
            ]
        );
    }

    #[test]
    fn a_hint_is_found_below_what_was_being_done() {
        let refused = ClientError::from(ApiError::new(ErrorCode::VniTaken, "VNI 7 is taken"));
        let error = Err::<(), _>(refused).context("creating network corp").unwrap_err();
        assert!(of(&error).unwrap().contains("--vni"));
        assert_eq!(of(&anyhow::anyhow!("something else")), None);
    }

    #[test]
    fn a_hint_is_one_line_of_plain_text() {
        for code in ErrorCode::ALL {
            let hint = of_code(*code).unwrap_or_default();
            assert!(hint.is_ascii() && !hint.contains("  ") && !hint.ends_with('.'), "{hint}");
        }
    }
}
