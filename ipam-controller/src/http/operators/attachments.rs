//! Edge: what operators ask of which container holds which addresses.

use axum::Json;
use axum::extract::State as Shared;
use limpet_api::book::{Attachment, AttachmentKey};
use limpet_api::{ApiError, ErrorCode, Listing, Versioned};
use limpet_net_types::{ContainerId, HostName, IfName, NetworkName};

use super::{missing, versioned};
use crate::http::extract::{Params, Query};
use crate::http::{Answer, App};
use crate::listing::{self, Filter};

pub(in crate::http) type Path = (HostName, NetworkName, ContainerId, IfName);

pub(in crate::http) fn key((host, network, container, ifname): Path) -> AttachmentKey {
    AttachmentKey { host, network, container, ifname }
}

pub(in crate::http) fn not_found(key: &AttachmentKey) -> ApiError {
    let AttachmentKey { host, network, container, ifname } = key;
    let what = format!(
        "attachment of interface {ifname} of container {container} in network {network} on \
         host {host}"
    );
    missing(ErrorCode::AttachmentNotFound, &what)
}

pub(in crate::http) async fn list(
    Shared(app): Shared<App>,
    Query(filter): Query<Filter>,
) -> Answer<Listing<Attachment>> {
    Ok(Json(app.book.read(move |state| listing::attachments(state, &filter)).await??))
}

pub(in crate::http) async fn show(
    Shared(app): Shared<App>,
    Params(path): Params<Path>,
) -> Answer<Versioned<Attachment>> {
    let key = key(path);
    let wanted = key.clone();
    let found = app.book.read(move |state| state.attachment(&wanted).cloned()).await?;
    Ok(Json(versioned(found.ok_or_else(|| not_found(&key))?)))
}
