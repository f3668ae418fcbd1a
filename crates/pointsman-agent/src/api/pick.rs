//! Picks, and claims given back.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Of;
use axum::response::{IntoResponse as _, Response};
use hyper::{StatusCode, Uri};
use pointsman_balance::{Algorithm, Outcome};
use pointsman_registry::wire::InstanceJson;
use serde::Serialize;

use super::input::{Last, OfService, Query, short};
use super::json;
use crate::State;
use crate::problem::Problem;

/// How long a claim is held when nobody says.
const TTL: Duration = Duration::from_secs(30);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3600);
/// The longest key, in bytes.
const KEY: usize = 8 << 10;

#[derive(Serialize)]
struct Picked<'a> {
    claim: &'a str,
    instance: InstanceJson<'a>,
    expires_in_ms: u64,
}

/// `GET /v1/services/{service}/pick`.
pub(super) async fn pick(
    Of(state): Of<Arc<State>>,
    OfService(service): OfService,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["algorithm", "key", "ttl"], None)?;
    let algorithm = match query.get("algorithm") {
        None => Algorithm::default(),
        Some(name) => name.parse().map_err(|error| Problem::bad(format!("query: {error}")))?,
    };
    let ttl = query.duration("ttl", SHORTEST, LONGEST)?.unwrap_or(TTL);
    let key = query.get("key");
    if key.is_some_and(|key| key.len() > KEY) {
        return Err(Problem::bad(format!("query: key has more than {KEY} bytes")));
    }
    let (claim, instance) = state.claims.pick(&state.feed, &service, algorithm, key, ttl)?;
    let expires_in_ms = u64::try_from(ttl.as_millis()).unwrap_or_default();
    Ok(json(StatusCode::OK, &Picked { claim: &claim, instance: InstanceJson::new(&instance), expires_in_ms }))
}

/// `DELETE /v1/claims/{claim}`.
pub(super) async fn release(Of(state): Of<Arc<State>>, Last(claim): Last, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["outcome"], None)?;
    let outcome = match query.get("outcome") {
        None => None,
        Some("success") => Some(Outcome::Success),
        Some("failure") => Some(Outcome::Failure),
        Some(other) => {
            return Err(Problem::bad(format!("query: outcome is success or failure, not {}", short(other))));
        }
    };
    state.claims.release(&claim, outcome)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
