//! Picks, and claims given back.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Of;
use axum::response::{IntoResponse as _, Response};
use hyper::{StatusCode, Uri};
use pointsman_balance::{Algorithm, Candidates};
use pointsman_registry::wire::{ExplanationJson, InstanceJson};
use serde::Serialize;

use super::input::{Last, OfService, Query, short};
use super::json;
use crate::State;
use crate::claims::{Claims, PickRequest, Picked};
use crate::peers::Question;
use crate::problem::{Kind, Problem};

/// How long a claim is held when nobody says.
const TTL: Duration = Duration::from_secs(30);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3600);
/// The longest key, in bytes.
const KEY: usize = 8 << 10;

#[derive(Serialize)]
struct PickedJson<'a> {
    claim: &'a str,
    instance: InstanceJson<'a>,
    expires_in_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<ExplanationJson<'a>>,
}

/// `GET /v1/services/{service}/pick`.
pub(super) async fn pick(
    Of(state): Of<Arc<State>>,
    OfService(service): OfService,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["algorithm", "role", "key", "ttl", "explain"], None)?;
    let algorithm = match query.get("algorithm") {
        None => Algorithm::default(),
        Some(name) => name.parse().map_err(|error| Problem::bad(format!("query: {error}")))?,
    };
    let candidates = match query.get("role") {
        None => Candidates::default(),
        Some(name) => name.parse().map_err(|error| Problem::bad(format!("query: {error}")))?,
    };
    let explain = query.is_on("explain")?;
    let ttl = query.duration("ttl", SHORTEST, LONGEST)?.unwrap_or(TTL);
    let key = query.get("key");
    if key.is_some_and(|key| key.len() > KEY) {
        return Err(Problem::bad(format!("query: key has more than {KEY} bytes")));
    }
    let request = PickRequest { service: &service, algorithm, candidates, key, ttl, explain };
    let Picked { claim, instance, explanation } = state.claims.pick(&state.feed, &request)?;
    let picked = PickedJson {
        claim: &claim,
        instance: InstanceJson::new(&instance),
        expires_in_ms: u64::try_from(ttl.as_millis()).unwrap_or_default(),
        explanation: explanation.as_ref().map(ExplanationJson::new),
    };
    Ok(json(StatusCode::OK, &picked))
}

/// `DELETE /v1/claims/{claim}`.
pub(super) async fn release(Of(state): Of<Arc<State>>, Last(claim): Last, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["outcome"], None)?;
    let success = match query.get("outcome") {
        None => None,
        Some("success") => Some(true),
        Some("failure") => Some(false),
        Some(other) => {
            return Err(Problem::bad(format!("query: outcome is success or failure, not {}", short(other))));
        }
    };
    match Claims::agent_of(&claim).filter(|_| !state.claims.has_given(&claim)) {
        None => state.claims.release(&claim, success.map(Claims::outcome))?,
        Some(agent) => {
            let question = Question::Release { claim: claim.clone(), success };
            let gone = || Problem::new(Kind::NoClaim, "the agent that held the claim is not there any more");
            state.agents.ask_one::<()>(agent, &question).await?.ok_or_else(gone)??;
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}
