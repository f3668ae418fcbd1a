//! What can be asked over HTTP: the paths, and how each answer is counted.

mod find;
mod input;
mod operate;
mod pick;
mod register;
mod stream;
mod system;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;

use crate::State;
use crate::problem::{Kind, Problem, method_not_allowed};
use crate::settings::Settings;

/// Every path of the API, with the methods it is for.
pub(crate) fn router(state: &Arc<State>, _settings: &Settings) -> Router {
    let service = "/v1/services/{service}";
    let instance = "/v1/services/{service}/instances/{code}";
    let mut router = Router::new();
    let mut add = |path: &str, methods: &'static str, call: &'static str, route: MethodRouter<Arc<State>>| {
        let route = route.fallback(move || async move { method_not_allowed(methods) });
        let state = state.clone();
        let counted = middleware::from_fn(move |request, next| count(call, state.clone(), request, next));
        router = std::mem::take(&mut router).route(path, route.layer(counted));
    };
    add("/v1/services", "GET, HEAD", "services", get(find::services));
    add(&format!("{service}/instances"), "GET, HEAD", "instances", get(find::instances));
    add(&format!("{service}/master"), "GET, HEAD", "master", get(find::master));
    add(&format!("{service}/history"), "GET, HEAD", "history", get(find::history));
    add("/v1/events", "GET, HEAD", "events", get(find::events));
    add("/v1/audit", "GET, HEAD", "audit", get(find::audit));
    add(&format!("{service}/watch"), "GET", "watch", only_get(watch::service));
    add("/v1/watch", "GET", "watch-all", only_get(watch::all));
    add(&format!("{service}/pick"), "GET", "pick", only_get(pick::pick));
    add("/v1/claims/{claim}", "DELETE", "release", delete(pick::release));
    add(instance, "PUT, DELETE", "register", put(register::put).delete(register::delete));
    add(&format!("{instance}/hold"), "POST", "hold", post(register::hold));
    add(&format!("{instance}/role"), "GET", "role", only_get(register::role));
    add(&format!("{instance}/resign"), "POST", "resign", post(register::resign));
    add(&format!("{instance}/drain"), "POST", "drain", post(operate::drain));
    add(&format!("{instance}/undrain"), "POST", "undrain", post(operate::undrain));
    add(&format!("{instance}/weight"), "PUT", "weight", put(operate::weight));
    add(&format!("{service}/check-term"), "POST", "check-term", post(operate::check_term));
    add("/livez", "GET, HEAD", "livez", get(system::livez));
    add("/readyz", "GET, HEAD", "readyz", get(system::readyz));
    add("/metrics", "GET, HEAD", "metrics", get(system::metrics));
    router.fallback(not_found).with_state(state.clone())
}

/// `HEAD` of a stream, or of a pick, would have an effect that nobody wants.
fn only_get<H: Handler<T, Arc<State>>, T: 'static>(handler: H) -> MethodRouter<Arc<State>> {
    let head = || async { method_not_allowed("GET") };
    get(handler).merge(axum::routing::head(head))
}

async fn count(call: &'static str, state: Arc<State>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let response = next.run(request).await;
    state.metrics.answered(call, response.status(), started.elapsed());
    response
}

async fn not_found(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::new(Kind::NotFound, format!("there is nothing at {path}; see /openapi.json")).into_response()
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer in JSON.
fn json(status: StatusCode, value: &impl Serialize) -> Response {
    // Strings and numbers under string keys: there is nothing in it that JSON cannot say.
    body(status, serde_json::to_vec(value).unwrap_or_default().into())
}

/// An answer that is JSON already.
fn body(status: StatusCode, body: Bytes) -> Response {
    let mut response = (status, body).into_response();
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}
