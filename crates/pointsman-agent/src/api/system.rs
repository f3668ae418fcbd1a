//! Whether the agent lives, whether it can be asked, and what it has counted.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use axum::extract::State as Of;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, StatusCode, Uri};
use pointsman_registry::Freshness;
use serde_json::json;

use super::input::Query;
use super::{body, has_already, tag};
use crate::State;
use crate::problem::Problem;

/// `GET /livez`.
pub(super) async fn livez(uri: Uri) -> Result<Response, Problem> {
    Query::read(&uri, &[], None)?;
    Ok("ok\n".into_response())
}

/// `GET /readyz`. An agent whose registry is away is ready all the same: what it knows is better than nothing.
pub(super) async fn readyz(Of(state): Of<Arc<State>>, uri: Uri) -> Result<Response, Problem> {
    Query::read(&uri, &[], None)?;
    let (registry, age) = match state.feed.directory().freshness() {
        Freshness::Stale { age } => ("stale", age.as_millis()),
        _ => ("fresh", 0),
    };
    Ok(super::json(StatusCode::OK, &json!({ "ready": true, "registry": registry, "age_ms": age })))
}

/// `GET /metrics`.
pub(super) async fn metrics(Of(state): Of<Arc<State>>, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    Query::read(&uri, &[], None)?;
    let more = state.more_metrics.lock().unwrap_or_else(std::sync::PoisonError::into_inner).as_ref().map(|more| more());
    let mut text = state.metrics.text(&state);
    if let Some(more) = more {
        text.push_str(&more.await);
    }
    let kind = pointsman_net::metrics::finish(&mut text, headers.get(ACCEPT).map(HeaderValue::as_bytes));
    let mut response = text.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// What the API is, for programs.
pub(super) const OPENAPI: &str = include_str!("../openapi.json");

/// `GET /openapi.json`.
pub(super) async fn openapi(headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    Query::read(&uri, &[], None)?;
    let mut hasher = DefaultHasher::new();
    OPENAPI.hash(&mut hasher);
    let etag = format!("\"{:016x}\"", hasher.finish());
    let is_known = has_already(&headers, &etag);
    let whole = || body(StatusCode::OK, Bytes::from_static(OPENAPI.as_bytes()));
    let mut response = if is_known { StatusCode::NOT_MODIFIED.into_response() } else { whole() };
    tag(response.headers_mut(), &etag);
    Ok(response)
}
