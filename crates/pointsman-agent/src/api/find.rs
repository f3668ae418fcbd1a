//! Who is there.

use std::sync::Arc;

use axum::extract::State as Of;
use axum::response::{IntoResponse as _, Response};
use bytes::{BufMut as _, BytesMut};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode, Uri};
use pointsman_core::{ObservedInstance, Snapshot};
use pointsman_registry::Freshness;
use pointsman_registry::wire::{InstanceJson, ServiceJson};

use super::input::{OfInstance, OfService, Query, short};
use super::watch::objects;
use super::{body, has_already, json};
use crate::State;
use crate::feed::Shot;
use crate::history;
use crate::problem::{Kind, Problem};

pub(super) const REVISION: HeaderName = HeaderName::from_static("x-pointsman-revision");
const FRESHNESS: HeaderName = HeaderName::from_static("x-pointsman-freshness");
/// How many events are told to who has just come.
const LATEST: usize = 500;

type Answer = Result<Response, Problem>;

/// `GET /v1/services`.
pub(super) async fn services(Of(state): Of<Arc<State>>, uri: Uri) -> Answer {
    Query::read(&uri, &[], None)?;
    let snapshots: Vec<Arc<Snapshot>> = state.feed.topics().iter().map(|topic| topic.snapshot()).collect();
    let services: Vec<_> = snapshots.iter().map(|snapshot| ServiceJson::new(snapshot)).collect();
    let mut response = json(StatusCode::OK, &services);
    response.headers_mut().insert(FRESHNESS, freshness(&state, snapshots.iter().any(|snapshot| snapshot.is_guarded())));
    Ok(response)
}

/// `GET /v1/services/{service}/instances`.
pub(super) async fn instances(
    Of(state): Of<Arc<State>>,
    OfService(service): OfService,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    let query = Query::read(&uri, &["all", "tag"], Some("tag"))?;
    let all = query.is_on("all")?;
    let tags = query.all("tag").map(tag).collect::<Result<Vec<_>, Problem>>()?;
    let shot = match state.feed.find(&service) {
        Some(topic) if all => topic.every(),
        Some(topic) => topic.working(),
        None => {
            let revision = state.feed.revision_of_unknown();
            Shot { snapshot: Arc::new(Snapshot::empty(service).at_revision(revision)), revision, body: "[]".into() }
        }
    };
    if !all
        && shot.snapshot.instances().is_empty()
        && let Some(problem) = Problem::unreadable(&shot.snapshot)
    {
        return Err(problem);
    }
    let shot = if tags.is_empty() { shot } else { tagged(&shot, all, &tags) };
    let etag = if all { format!("\"{}-all\"", shot.revision) } else { format!("\"{}\"", shot.revision) };
    let is_known = has_already(&headers, &etag);
    let mut response =
        if is_known { StatusCode::NOT_MODIFIED.into_response() } else { body(StatusCode::OK, shot.body) };
    let headers = response.headers_mut();
    headers.insert(REVISION, shot.revision.into());
    super::tag(headers, &etag);
    headers.insert(FRESHNESS, freshness(&state, shot.snapshot.is_guarded()));
    Ok(response)
}

/// `k=v` of a query.
fn tag(text: &str) -> Result<(&str, &str), Problem> {
    text.split_once('=').ok_or_else(|| Problem::bad(format!("query: tag is k=v, not {}", short(text))))
}

/// Those that have all these tags. What is broken in the registry has none.
fn tagged(shot: &Shot, all: bool, tags: &[(&str, &str)]) -> Shot {
    let has_all = |instance: &&Arc<ObservedInstance>| {
        let has = |(key, value): &(&str, &str)| instance.tags.get(*key).is_some_and(|tag| tag == value);
        (all || instance.takes_work()) && tags.iter().all(has)
    };
    let instances = shot.snapshot.instances().iter().filter(has_all);
    let shown: Vec<_> = instances.map(|instance| InstanceJson::new(instance)).collect();
    // Strings and numbers: there is nothing in it that JSON cannot say.
    let body = serde_json::to_vec(&shown).unwrap_or_default().into();
    Shot { snapshot: shot.snapshot.clone(), revision: shot.revision, body }
}

/// `GET /v1/services/{service}/instances/{code}`.
pub(super) async fn instance(Of(state): Of<Arc<State>>, OfInstance(service, code): OfInstance, uri: Uri) -> Answer {
    Query::read(&uri, &[], None)?;
    let snapshot = state.feed.directory().snapshot(&service);
    let Some(instance) = snapshot.find(&code) else {
        return Err(Problem::unreadable(&snapshot).unwrap_or_else(|| Problem::unknown_instance(&service, &code)));
    };
    let mut response = json(StatusCode::OK, &InstanceJson::new(instance));
    response.headers_mut().insert(REVISION, snapshot.revision().into());
    response.headers_mut().insert(FRESHNESS, freshness(&state, instance.is_guarded()));
    Ok(response)
}

/// `GET /v1/services/{service}/master`.
pub(super) async fn master(Of(state): Of<Arc<State>>, OfService(service): OfService, uri: Uri) -> Answer {
    Query::read(&uri, &[], None)?;
    // Not what the feed has told already: one that has left since is not to be named.
    let snapshot = state.feed.directory().snapshot(&service);
    let Some(master) = snapshot.master() else {
        let no_master = || Problem::new(Kind::NoMaster, format!("service {service} has no master now"));
        return Err(Problem::unreadable(&snapshot).unwrap_or_else(no_master));
    };
    let mut response = json(StatusCode::OK, &InstanceJson::new(master));
    response.headers_mut().insert(REVISION, snapshot.revision().into());
    response.headers_mut().insert(FRESHNESS, freshness(&state, snapshot.is_guarded()));
    Ok(response)
}

/// `GET /v1/services/{service}/history`.
pub(super) async fn history(Of(state): Of<Arc<State>>, OfService(service): OfService, uri: Uri) -> Answer {
    Query::read(&uri, &[], None)?;
    let seen = state.feed.find(&service).map(|topic| topic.masters()).unwrap_or_default();
    Ok(json(StatusCode::OK, &history::masters(&state.registry, &service, seen).await))
}

/// `GET /v1/events`.
pub(super) async fn events(Of(state): Of<Arc<State>>, uri: Uri) -> Answer {
    Query::read(&uri, &[], None)?;
    let latest = state.feed.latest(LATEST);
    let mut list = BytesMut::from(&b"["[..]);
    list.put(objects(latest.iter().map(|group| &**group).filter(|group| group.service.is_some())));
    list.put_u8(b']');
    Ok(body(StatusCode::OK, list.freeze()))
}

/// `GET /v1/audit`.
pub(super) async fn audit(Of(state): Of<Arc<State>>, uri: Uri) -> Answer {
    Query::read(&uri, &[], None)?;
    let lines = state.audit.read(&state.registry).await;
    Ok(body(StatusCode::OK, format!("[{}]", lines.join(",")).into()))
}

/// How far an answer can be trusted.
pub(super) fn freshness(state: &State, is_guarded: bool) -> HeaderValue {
    let age = match state.feed.directory().freshness() {
        Freshness::Fresh if !is_guarded => return HeaderValue::from_static("fresh"),
        Freshness::Stale { age } | Freshness::Guarded { age } => age.as_millis(),
        Freshness::Fresh => 0,
    };
    let word = if is_guarded { "guarded" } else { "stale" };
    HeaderValue::try_from(format!("{word};age_ms={age}")).unwrap_or_else(|_| HeaderValue::from_static("stale"))
}
