//! What operators do, and what a deposed master may no longer do.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State as Of;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::{HeaderMap, StatusCode, Uri};
use pointsman_core::{Term, check_name};
use serde::Deserialize;
use serde_json::json;

use super::input::{OfInstance, OfService, Query, parse, whole};
use crate::State;
use crate::feed::now_ms;
use crate::gate::Actor;
use crate::problem::Problem;
use crate::server::Peer;

type Answer = Result<Response, Problem>;

/// `POST /v1/services/{service}/instances/{code}/drain`.
pub(super) async fn drain(
    Of(state): Of<Arc<State>>,
    OfInstance(service, code): OfInstance,
    Extension(actor): Extension<Actor>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
) -> Answer {
    let if_unset = Query::read(&uri, &["if_unset"], None)?.is_on("if_unset")?;
    let step = || format!("drain {service}/{code}");
    let detail = if if_unset { "no new claims, unless something else was set" } else { "no new claims" };
    if if_unset {
        // A drain is restored whether or not the instance is registered again yet.
        state.write(step, state.registry.drain_if_unset(&service, &code)).await?;
    } else {
        check_known(&state, &service, &code)?;
        state.write(step, state.registry.drain(&service, &code)).await?;
    }
    note(&state, actor, peer, "drain", &service, &code, detail).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /v1/services/{service}/instances/{code}/undrain`.
pub(super) async fn undrain(
    Of(state): Of<Arc<State>>,
    OfInstance(service, code): OfInstance,
    Extension(actor): Extension<Actor>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
) -> Answer {
    Query::read(&uri, &[], None)?;
    let step = || format!("undrain {service}/{code}");
    state.write(step, state.registry.undrain(&service, &code)).await?;
    note(&state, actor, peer, "undrain", &service, &code, "takes work again").await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Weight {
    /// It must be there, and may be null.
    #[serde(deserialize_with = "whole")]
    weight: Option<u32>,
}

/// `PUT /v1/services/{service}/instances/{code}/weight`.
pub(super) async fn weight(
    Of(state): Of<Arc<State>>,
    OfInstance(service, code): OfInstance,
    Extension(actor): Extension<Actor>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    Query::read(&uri, &[], None)?;
    let Weight { weight } = parse(&headers, &body)?;
    check_known(&state, &service, &code)?;
    let step = || format!("set the weight of {service}/{code}");
    state.write(step, state.registry.set_weight(&service, &code, weight)).await?;
    let detail = weight.map_or("the registered weight counts again".to_owned(), |weight| format!("weight {weight}"));
    note(&state, actor, peer, "weight", &service, &code, &detail).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    term: u64,
}

/// `POST /v1/services/{service}/check-term`.
pub(super) async fn check_term(
    Of(state): Of<Arc<State>>,
    OfService(service): OfService,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    Query::read(&uri, &[], None)?;
    let Check { term } = parse(&headers, &body)?;
    let step = || format!("check term {term} of {service}");
    let highest = state.write(step, state.registry.check_term(&service, Term(term))).await?;
    Ok(super::json(StatusCode::OK, &json!({ "term": term, "highest": highest.0 })))
}

/// `GET /v1/term-base`.
pub(super) async fn term_base(Of(state): Of<Arc<State>>, uri: Uri) -> Answer {
    Query::read(&uri, &[], None)?;
    let base = state.write(|| "read the term base".to_owned(), state.registry.term_base()).await?;
    Ok(super::json(StatusCode::OK, &json!({ "term_base": base.0 })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raise {
    above: u64,
}

/// `PUT /v1/term-base`.
pub(super) async fn raise_term_base(
    Of(state): Of<Arc<State>>,
    Extension(actor): Extension<Actor>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    Query::read(&uri, &[], None)?;
    let Raise { above } = parse(&headers, &body)?;
    let step = || format!("raise the term base above {above}");
    let base = state.write(step, state.registry.raise_term_base(Term(above))).await?;
    // It is of no service, and of no instance.
    note(&state, actor, peer, "term-base", "", "", &format!("terms are above {base} from now on")).await;
    Ok(super::json(StatusCode::OK, &json!({ "term_base": base.0 })))
}

/// Refuses a code that is not registered and has no override: most likely it is misspelt.
fn check_known(state: &State, service: &str, code: &str) -> Result<(), Problem> {
    let directory = state.feed.directory();
    let is_known = directory.snapshot(service).find(code).is_some()
        || directory.has_override(service, code)
        || state.registrations.find(service, code).is_ok();
    if is_known { Ok(()) } else { Err(Problem::unknown_instance(service, code)) }
}

/// `GET /v1/overrides`.
pub(super) async fn overrides(Of(state): Of<Arc<State>>, uri: Uri) -> Answer {
    Query::read(&uri, &[], None)?;
    Ok(super::json(StatusCode::OK, &state.feed.directory().overrides()))
}

/// `DELETE /v1/overrides?gone`.
pub(super) async fn clear_gone(
    Of(state): Of<Arc<State>>,
    Extension(actor): Extension<Actor>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
) -> Answer {
    let query = Query::read(&uri, &["gone", "service"], None)?;
    if !query.is_on("gone")? {
        let detail = "query: say ?gone: only what is set for codes that are not registered can be cleared together";
        return Err(Problem::bad(detail.to_owned()));
    }
    let service = query.get("service");
    if let Some(service) = service {
        check_name("service", service)?;
    }
    let step = || "clear what is set for codes that are gone".to_owned();
    let cleared = state.write(step, state.registry.clear_gone_overrides(service)).await?;
    for of_service in cleared.cleared.chunk_by(|a, b| a.service == b.service) {
        let codes: Vec<&str> = of_service.iter().take(NAMED).map(|set| &*set.code).collect();
        let more = if of_service.len() > NAMED { ", …" } else { "" };
        let detail = format!("{} codes that are gone: {}{more}", of_service.len(), codes.join(", "));
        note(&state, actor, peer, "clear-gone", &of_service[0].service, ALL, &detail).await;
    }
    Ok(super::json(StatusCode::OK, &cleared))
}

/// Maximum number of codes that one audit line names.
const NAMED: usize = 10;
/// The code of an audit line that is about several.
const ALL: &str = "*";

/// The audit line: in the log, for who asks, and for who watches.
async fn note(state: &State, actor: Actor, Peer(peer): Peer, action: &str, service: &str, code: &str, detail: &str) {
    let by = format!("{} from {}", actor.name(), peer.ip().to_canonical());
    tracing::info!(by, action, service, code, detail, "audit");
    let at_ms = now_ms();
    let line = json!({
        "at_ms": at_ms, "actor": by, "action": action, "service": service, "code": code, "detail": detail,
    })
    .to_string();
    state.feed.tell("audit", line.as_bytes());
    state.metrics.operations.inc();
    state.audit.note(&state.registry, at_ms, &line).await;
}
