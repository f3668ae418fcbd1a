//! Registering: by a lease, or for as long as a connection is open.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Of;
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use hyper::{HeaderMap, StatusCode, Uri};
use pointsman_core::{Instance, Role};
use pointsman_registry::check::{Check, Probe};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

use super::input::{OfInstance, Query, Tags, duration, parse, whole};
use super::stream::{self, Source, counted};
use crate::State;
use crate::feed::event;
use crate::problem::{Kind, Problem};
use crate::registrations::{Answer, Bound, End, Registered, Status, Wish};

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);
/// How long the registry may take to write what is changed of a living registration, which is kept in any case.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what has been registered may take to be shown, before that is not waited for.
const SEEN: Duration = Duration::from_secs(1);
/// How long to try to take over what another agent may have. Far more than it takes.
const TAKE_OVER: Duration = Duration::from_secs(2);
/// The longest word for who registers, in bytes.
const HOLDER: usize = 128;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    address: Option<String>,
    #[serde(default, deserialize_with = "whole")]
    weight: Option<u32>,
    #[serde(default)]
    tags: Tags,
    ttl: Option<String>,
    check: Option<WantedCheck>,
    holder: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedCheck {
    probe: String,
    interval: Option<String>,
    timeout: Option<String>,
    #[serde(default, deserialize_with = "whole")]
    rise: Option<u32>,
    #[serde(default, deserialize_with = "whole")]
    fall: Option<u32>,
}

impl Wanted {
    fn wish(self, service: &str, code: &str) -> Result<Wish, Problem> {
        let mut instance = Instance::new(service).code(code);
        instance.address = self.address.map(Into::into);
        instance.weight = self.weight.unwrap_or(1);
        instance.tags = self.tags.0;
        instance.check().map_err(|error| Problem::bad(error.to_string()))?;
        let ttl = self.ttl.map(|ttl| duration("ttl", &ttl, SHORTEST, LONGEST)).transpose()?;
        let check = self.check.map(|check| check.check(instance.address.as_deref())).transpose()?;
        let holder = self.holder.map(Arc::<str>::from);
        if let Some(holder) = &holder
            && (holder.is_empty() || holder.len() > HOLDER || holder.chars().any(char::is_control))
        {
            return Err(Problem::bad(format!("holder has 1 to {HOLDER} bytes, none of them a control character")));
        }
        Ok(Wish { instance, ttl, check, holder })
    }
}

impl WantedCheck {
    fn check(self, address: Option<&str>) -> Result<Check, Problem> {
        let probe =
            Probe::parse(&self.probe, address).map_err(|reason| Problem::bad(format!("check.probe: {reason}")))?;
        let mut check = Check::new(probe);
        let bounds = (Duration::from_millis(100), LONGEST);
        if let Some(interval) = self.interval {
            check.interval = duration("check.interval", &interval, bounds.0, bounds.1)?;
        }
        if let Some(timeout) = self.timeout {
            check.timeout = duration("check.timeout", &timeout, bounds.0, bounds.1)?;
        }
        (check.rise, check.fall) = (self.rise.unwrap_or(check.rise), self.fall.unwrap_or(check.fall));
        if check.rise == 0 || check.fall == 0 {
            return Err(Problem::bad("check.rise and check.fall are 1 or more"));
        }
        Ok(check)
    }
}

#[derive(Serialize)]
struct Told {
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Arc<str>>,
}

impl From<Answer> for Told {
    fn from(Answer { role, reason, expires_in }: Answer) -> Self {
        let expires_in_ms = expires_in.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        Self { role: role.name(), term: role.term().map(|term| term.0), expires_in_ms, reason }
    }
}

/// `PUT /v1/services/{service}/instances/{code}`.
pub(super) async fn put(
    Of(state): Of<Arc<State>>,
    OfInstance(service, code): OfInstance,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["holder"], None)?;
    if body.is_empty() {
        let registered = find(&state, &service, &code, &query)?;
        registered.renew()?;
        return Ok(super::json(StatusCode::OK, &Told::from(registered.answer())));
    }
    let wish = parse::<Wanted>(&headers, &body)?.wish(&service, &code)?;
    let (registered, is_new) = state.registrations.put(&wish, PATIENCE).await?;
    if is_new {
        seen(&state, &registered, &service, &code).await;
    }
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok(super::json(status, &Told::from(registered.answer())))
}

/// `DELETE /v1/services/{service}/instances/{code}`.
pub(super) async fn delete(
    Of(state): Of<Arc<State>>,
    OfInstance(service, code): OfInstance,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["holder"], None)?;
    let registered = match find(&state, &service, &code, &query) {
        Ok(registered) => registered,
        Err(problem) if query.get("holder").is_some() => return Err(problem),
        // Renewed by another agent, perhaps: whoever knows the code of a lease may end it by any.
        Err(problem) => match find_elsewhere(&state, &service, &code).await {
            Some(registered) => registered,
            None => return Err(problem),
        },
    };
    registered.end(End::Deregistered);
    match tokio::time::timeout(state.limits.write_time, registered.ended()).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(_) => {
            let detail =
                format!("deregister {service}/{code}: the registry does not answer; it is removed when it is back");
            Err(Problem::new(Kind::Unavailable, detail))
        }
    }
}

/// Waits until this agent shows what has been registered: whoever registers and then asks finds it. Not for long: it is registered
/// in any case.
async fn seen(state: &State, registered: &Registered, service: &str, code: &str) {
    if registered.answer().role == Role::Detached || *state.feed.stale().borrow() {
        return;
    }
    let topic = state.feed.topic(service);
    let mut revision = topic.revision();
    let shown = revision.wait_for(|_| topic.snapshot().find(code).is_some());
    let _ = tokio::time::timeout(SEEN, shown).await;
}

/// The registration; of the holder that the query names, if it does: whoever was away for too long must not go on with, or end,
/// what another has registered meanwhile.
fn find(state: &State, service: &str, code: &str, query: &Query) -> Result<Arc<Registered>, Problem> {
    let registered = state.registrations.find(service, code)?;
    match query.get("holder") {
        Some(holder) if !registered.is_of(holder) => {
            let detail = format!("{service}/{code} is registered by another holder");
            Err(Problem::new(Kind::NotRegistered, detail))
        }
        _ => Ok(registered),
    }
}

/// Takes over what is registered by a lease through another agent.
async fn find_elsewhere(state: &State, service: &str, code: &str) -> Option<Arc<Registered>> {
    let instance = state.feed.find(service)?.snapshot().find(code)?.clone();
    let wish = Wish { instance: Instance::clone(&instance), ttl: None, check: None, holder: None };
    match tokio::time::timeout(TAKE_OVER, state.registrations.put(&wish, PATIENCE)).await {
        Ok(taken) => taken.ok().map(|(registered, _)| registered),
        Err(_) => {
            // What another has registered otherwise would be waited for in vain.
            if let Ok(registering) = state.registrations.find(service, code) {
                registering.end(End::Deregistered);
            }
            None
        }
    }
}

/// `POST /v1/services/{service}/instances/{code}/resign`.
pub(super) async fn resign(
    Of(state): Of<Arc<State>>,
    OfInstance(service, code): OfInstance,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["holder"], None)?;
    let registered = find(&state, &service, &code, &query)?;
    state.write(|| format!("resign {service}/{code}"), registered.resign()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /v1/services/{service}/instances/{code}/hold`.
pub(super) async fn hold(
    Of(state): Of<Arc<State>>,
    OfInstance(service, code): OfInstance,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    Query::read(&uri, &[], None)?;
    let wanted = if body.is_empty() { Wanted::default() } else { parse(&headers, &body)? };
    let wish = wanted.wish(&service, &code)?;
    let counted = counted(&state)?;
    let bound = state.registrations.hold(&wish, PATIENCE).await?;
    seen(&state, &bound.registered, &service, &code).await;
    let roles = Roles::new(&state, bound.registered.clone(), Some(bound));
    Ok(stream::answer(roles, counted))
}

/// `GET /v1/services/{service}/instances/{code}/role`.
pub(super) async fn role(
    Of(state): Of<Arc<State>>,
    OfInstance(service, code): OfInstance,
    uri: Uri,
) -> Result<Response, Problem> {
    Query::read(&uri, &[], None)?;
    let counted = counted(&state)?;
    let registered = state.registrations.find(&service, &code)?;
    Ok(stream::answer(Roles::new(&state, registered, None), counted))
}

/// The roles of one registration as they change.
struct Roles {
    registered: Arc<Registered>,
    status: watch::Receiver<Status>,
    /// Who holds the registration deregisters when it is dropped.
    bound: Option<Bound>,
    told: Option<(Role, Option<Arc<str>>)>,
    closing: watch::Receiver<bool>,
    over: bool,
}

impl Roles {
    fn new(state: &State, registered: Arc<Registered>, bound: Option<Bound>) -> Self {
        let (status, closing) = (registered.status(), state.closing.subscribe());
        Self { registered, status, bound, told: None, closing, over: false }
    }

    /// What is new since the last time.
    fn read(&mut self) -> Option<Bytes> {
        let ended = self.status.borrow_and_update().ended.clone();
        let replaced = self.bound.as_ref().is_some_and(Bound::is_replaced).then_some(End::Replaced);
        let closing = self.closing.borrow_and_update().then_some(End::Closing);
        let mut text = BytesMut::new();
        if let Some(end) = ended.or(replaced).or(closing) {
            self.over = true;
            let mut data = json!({ "reason": end.name() });
            if let End::Failed(problem) = &end {
                data["detail"] = json!(problem.detail);
            }
            event(&mut text, "end", data.to_string().as_bytes(), None);
            return Some(text.freeze());
        }
        let answer = self.registered.answer();
        let now = (answer.role, answer.reason.clone());
        if self.told.replace(now.clone()) == Some(now) {
            return None;
        }
        // Strings and numbers: there is nothing in it that JSON cannot say.
        event(&mut text, "role", &serde_json::to_vec(&Told::from(answer)).unwrap_or_default(), None);
        Some(text.freeze())
    }
}

impl Source for Roles {
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        loop {
            if let Some(text) = self.read() {
                return Some(text);
            }
            tokio::select! {
                changed = self.status.changed() => if changed.is_err() {
                    return None;
                },
                _ = self.closing.changed() => {}
            }
        }
    }
}
