//! What can be asked over HTTP: the paths, and how each answer is counted.

mod find;
mod input;
mod operate;
mod pick;
pub(crate) mod register;
mod stream;
mod system;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use bytes::Bytes;
use hyper::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use hyper::{HeaderMap, StatusCode};
use serde::Serialize;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

pub(crate) use self::stream::EVENT_STREAM;

use crate::State;
use crate::dashboard;
use crate::go_micro_service;
use crate::metrics::CallMetrics;
use crate::problem::{Kind, Problem, method_not_allowed};
use crate::settings::Settings;

/// Makes what answers a path.
pub(crate) type Answering = fn() -> MethodRouter<Arc<State>>;

/// A path, the methods it is for, the name under which its calls are counted, and what answers them.
struct Route {
    path: &'static str,
    methods: &'static str,
    call: &'static str,
    answer: Answering,
    /// Whether it may be long enough to be compressed. Streams of events are not: each event has to arrive at once.
    may_be_long: bool,
}

const fn route(path: &'static str, methods: &'static str, call: &'static str, answer: Answering) -> Route {
    Route { path, methods, call, answer, may_be_long: false }
}

const fn long(path: &'static str, methods: &'static str, call: &'static str, answer: Answering) -> Route {
    Route { path, methods, call, answer, may_be_long: true }
}

/// Every path of the API. `openapi.json` describes them; the files of the dashboard are not in it.
const ROUTES: &[Route] = &[
    long("/v1/services", "GET, HEAD", "services", || get(find::services)),
    long("/v1/services/{service}/instances", "GET, HEAD", "instances", || get(find::instances)),
    route("/v1/services/{service}/master", "GET, HEAD", "master", || get(find::master)),
    long("/v1/services/{service}/history", "GET, HEAD", "history", || get(find::history)),
    long("/v1/events", "GET, HEAD", "events", || get(find::events)),
    long("/v1/overrides", "GET, HEAD, DELETE", "overrides", || get(operate::overrides).delete(operate::clear_gone)),
    long("/v1/audit", "GET, HEAD", "audit", || get(find::audit)),
    route("/v1/services/{service}/watch", "GET", "watch", || only_get(watch::service)),
    long("/v1/services/{service}/changes", "GET", "changes", || only_get(watch::changes)),
    route("/v1/watch", "GET", "watch-all", || only_get(watch::all)),
    route("/v1/services/{service}/pick", "GET", "pick", || only_get(pick::pick)),
    route("/v1/claims/{claim}", "DELETE", "release", || delete(pick::release)),
    route("/v1/services/{service}/instances/{code}", "GET, HEAD, PUT, DELETE", "register", || {
        get(find::instance).put(register::put).delete(register::delete)
    }),
    route("/v1/services/{service}/instances/{code}/hold", "POST", "hold", || post(register::hold)),
    route("/v1/services/{service}/instances/{code}/role", "GET", "role", || only_get(register::role)),
    route("/v1/services/{service}/instances/{code}/resign", "POST", "resign", || post(register::resign)),
    route("/v1/services/{service}/instances/{code}/drain", "POST", "drain", || post(operate::drain)),
    route("/v1/services/{service}/instances/{code}/undrain", "POST", "undrain", || post(operate::undrain)),
    route("/v1/services/{service}/instances/{code}/weight", "PUT", "weight", || put(operate::weight)),
    route("/v1/services/{service}/check-term", "POST", "check-term", || post(operate::check_term)),
    route("/v1/term-base", "GET, HEAD, PUT", "term-base", || get(operate::term_base).put(operate::raise_term_base)),
    route("/livez", "GET, HEAD", "livez", || get(system::livez)),
    route("/readyz", "GET, HEAD", "readyz", || get(system::readyz)),
    long("/metrics", "GET, HEAD", "metrics", || get(system::metrics)),
    long("/openapi.json", "GET, HEAD", "openapi", || get(system::openapi)),
];

/// All of it, for the listener.
pub(crate) fn router(state: &Arc<State>, settings: &Settings) -> Router {
    let api = ROUTES.iter().map(|&Route { path, methods, call, answer, may_be_long }| {
        let answer = answer();
        (path, methods, call, if may_be_long { answer.layer(compression()) } else { answer })
    });
    let dashboard =
        dashboard::routes().map(|(path, answer)| (path, "GET, HEAD", "dashboard", answer.layer(compression())));
    let mut router = Router::new();
    for (path, methods, call, answer) in api.chain(dashboard) {
        let answer = answer.fallback(move || async move { method_not_allowed(methods) });
        let metrics = state.metrics.call(call);
        let counted = middleware::from_fn(move |request, next| count(metrics.clone(), request, next));
        router = router.route(path, answer.layer(counted));
    }
    for (path, call, answer) in go_micro_service::ROUTES.into_iter().filter(|_| settings.go_micro_service) {
        let metrics = state.metrics.call(call);
        let counted = middleware::from_fn(move |request, next| count(metrics.clone(), request, next));
        router = router.route(path, answer().layer(counted));
    }
    // The listener has read it, within its own limit.
    router.fallback(not_found).layer(DefaultBodyLimit::disable()).with_state(state.clone())
}

/// Answers below this size go out as they are: they fit one packet, or nearly.
const COMPRESSED_FROM: u16 = 1 << 10;

/// gzip for those who accept it.
fn compression() -> CompressionLayer<SizeAbove> {
    let pays = SizeAbove::new(COMPRESSED_FROM);
    CompressionLayer::new().gzip(true).quality(CompressionLevel::Fastest).compress_when(pays)
}

/// `HEAD` of a stream, or of a pick, would have an effect that nobody wants.
fn only_get<H: Handler<T, Arc<State>>, T: 'static>(handler: H) -> MethodRouter<Arc<State>> {
    let head = || async { method_not_allowed("GET") };
    get(handler).merge(axum::routing::head(head))
}

async fn count(metrics: CallMetrics, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let response = next.run(request).await;
    metrics.answered(response.status(), started.elapsed());
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

/// Says what is needed to keep an answer and to ask whether it is still the same: also where nothing is sent because it is (RFC 9110,
/// 15.4.5). The tag is a weak one, since what has it is sent compressed to some and plain to others (8.8.3.3).
pub(crate) fn tag(headers: &mut HeaderMap, etag: &str) {
    if let Ok(etag) = HeaderValue::try_from(format!("W/{etag}")) {
        headers.insert(ETAG, etag);
    }
    headers.insert(VARY, ACCEPT_ENCODING.into());
    // It may be kept, but is asked for each time.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
}

/// Whether the client has what has this tag (RFC 9110, 13.1.2: by weak comparison).
pub(crate) fn has_already(headers: &HeaderMap, etag: &str) -> bool {
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|known| known.to_str().ok());
    known
        .flat_map(|known| known.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.trim_start_matches("W/") == etag)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn document() -> Value {
        serde_json::from_str(system::OPENAPI).unwrap()
    }

    #[test]
    fn the_document_has_the_paths_and_the_methods_of_the_router() {
        let document = document();
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
                described.insert((path.clone(), method.to_uppercase()));
            }
        }
        let mut served = BTreeSet::new();
        for route in ROUTES {
            // That `HEAD` is answered as `GET` is said once, at the top.
            for method in route.methods.split(", ").filter(|method| *method != "HEAD") {
                served.insert((route.path.to_owned(), method.to_owned()));
            }
        }
        assert_eq!(described, served);
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn the_document_names_every_problem_with_its_status() {
        let document = document();
        let mut described = BTreeSet::new();
        let answers = document["components"]["responses"].as_object().unwrap();
        // What HTTP itself does not let pass has no body.
        for (_, answer) in answers.iter().filter(|(name, _)| *name != "HeadTooLarge") {
            let more = &answer["content"]["application/problem+json"]["schema"]["properties"];
            let status = more["status"]["const"].as_u64().unwrap();
            for name in more["type"]["enum"].as_array().unwrap() {
                described.insert((name.as_str().unwrap().to_owned(), status));
            }
        }
        let there = Kind::ALL
            .iter()
            .map(|kind| (pointsman_net::problem::urn(kind.name()), u64::from(kind.status().as_u16())))
            .collect();
        assert_eq!(described, there);
    }

    #[test]
    fn everything_that_the_document_refers_to_is_there() {
        fn refs(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").map(|to| to.as_str().unwrap().to_owned()));
                    fields.values().for_each(|value| refs(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| refs(value, found)),
                _ => {}
            }
        }
        let (document, mut found) = (document(), Vec::new());
        refs(&document, &mut found);
        assert!(found.len() > 100);
        for to in found {
            assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
        }
    }

    #[test]
    fn tags_that_a_client_has() {
        let has = |known: &[&str]| {
            let mut headers = HeaderMap::new();
            for known in known {
                headers.append(IF_NONE_MATCH, known.parse().unwrap());
            }
            has_already(&headers, "\"7\"")
        };
        for known in [&["\"7\""][..], &["W/\"7\""], &["\"6\", \"7\""], &["\"6\"", "\"7\""], &["*"]] {
            assert!(has(known), "{known:?}");
        }
        for unknown in [&[][..], &["\"6\""], &["7"], &["\"7-all\""]] {
            assert!(!has(unknown), "{unknown:?}");
        }
    }
}
