//! Registering: by a lease, or for as long as a connection is open.

use std::borrow::Cow;
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
use tokio::time::Instant;

use super::input::{OfInstance, Query, Tags, duration, parse, whole};
use super::stream::{self, Source, counted};
use crate::State;
use crate::feed::event;
use crate::peers::Question;
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

/// What a client wants to be registered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    address: Option<String>,
    #[serde(default, deserialize_with = "whole")]
    weight: Option<u32>,
    #[serde(default)]
    tags: Tags,
    ttl: Option<String>,
    check: Option<WantedCheck>,
    holder: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    observer: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
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
        let mut instance = Instance::with_code(service, code);
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
        Ok(Wish { instance, ttl, check, holder, observer: self.observer })
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

/// What a client is told of its role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    role: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Arc<str>>,
}

impl Told {
    /// Whether both say the same of the role, for whatever time.
    fn is_same_role(&self, other: &Told) -> bool {
        (&self.role, self.term, &self.reason) == (&other.role, other.term, &other.reason)
    }
}

impl From<Answer> for Told {
    fn from(Answer { role, reason, expires_in }: Answer) -> Self {
        let expires_in_ms = expires_in.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        Self { role: role.name().into(), term: role.term().map(|term| term.0), expires_in_ms, reason }
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
    let holder = query.get("holder").map(str::to_owned);
    let wanted = if body.is_empty() { None } else { Some(parse::<Wanted>(&headers, &body)?) };
    let wish = wanted.clone().map(|wanted| wanted.wish(&service, &code)).transpose()?;
    let kept = state.registrations.kept(&service, &code);
    let is_kept = kept.is_some();
    if let (Some(registered), None) = (kept, &wish) {
        // A renewal, as nearly all requests are: it is looked up once.
        check_holder(&registered, &service, &code, holder.as_deref())?;
        return Ok(super::json(StatusCode::OK, &renewed(&registered)?));
    }
    if !is_kept && may_be_kept_elsewhere(&state, &service, &code, wish.as_ref()) {
        let question = Question::Put { service: service.clone(), code: code.clone(), holder: holder.clone(), wanted };
        // One that does not answer is replaced.
        if let Ok(Some(reply)) = state.agents.ask::<Told>(&question).await {
            return Ok(super::json(StatusCode::OK, &reply?));
        }
    }
    let Some(wish) = wish else {
        let registered = find(&state, &service, &code, holder.as_deref())?;
        return Ok(super::json(StatusCode::OK, &renewed(&registered)?));
    };
    let (registered, is_new) = state.registrations.put(&wish, PATIENCE).await?;
    if is_new {
        seen(&state, &registered, &service, &code).await;
    }
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok(super::json(status, &Told::from(registered.answer())))
}

/// Whether another agent may keep what this one does not. Where there is a check it may be registered nowhere just now.
fn may_be_kept_elsewhere(state: &State, service: &str, code: &str, wish: Option<&Wish>) -> bool {
    let is_listed = || state.feed.directory().snapshot(service).find(code).is_some_and(|found| !found.is_guarded());
    wish.is_none_or(|wish| wish.check.is_some() || is_listed())
}

fn renewed(registered: &Registered) -> Result<Told, Problem> {
    registered.renew()?;
    Ok(Told::from(registered.answer()))
}

/// Renews what this agent keeps, and lets it be as wanted, for a client of another agent. `None`: it is not kept here.
pub(crate) async fn put_kept(
    state: &State,
    service: &str,
    code: &str,
    holder: Option<&str>,
    wanted: Option<Wanted>,
) -> Option<Result<Told, Problem>> {
    state.registrations.kept(service, code)?;
    let Some(wanted) = wanted else {
        return Some(find(state, service, code, holder).and_then(|registered| renewed(&registered)));
    };
    let wish = match wanted.wish(service, code) {
        Ok(wish) => wish,
        Err(problem) => return Some(Err(problem)),
    };
    let put = state.registrations.put(&wish, PATIENCE).await;
    Some(put.map(|(registered, _)| Told::from(registered.answer())))
}

/// `DELETE /v1/services/{service}/instances/{code}`.
pub(super) async fn delete(
    Of(state): Of<Arc<State>>,
    OfInstance(service, code): OfInstance,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["holder"], None)?;
    let holder = query.get("holder");
    if let Some(reply) = delete_kept(&state, &service, &code, holder).await {
        return reply.map(|()| StatusCode::NO_CONTENT.into_response());
    }
    let question = Question::Delete { service: service.clone(), code: code.clone(), holder: holder.map(str::to_owned) };
    if let Ok(Some(reply)) = state.agents.ask::<()>(&question).await {
        return reply.map(|()| StatusCode::NO_CONTENT.into_response());
    }
    // The agent that keeps it may have died. Whoever knows the holder of a registration, or the code of a lease, may end it by any.
    let Some(registered) = take_over(&state, &service, &code, holder).await else {
        return Err(find(&state, &service, &code, holder).err().unwrap_or_else(Problem::closing));
    };
    end(&state, &registered, &service, &code).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Ends what this agent keeps. `None`: it is not kept here.
pub(crate) async fn delete_kept(
    state: &State,
    service: &str,
    code: &str,
    holder: Option<&str>,
) -> Option<Result<(), Problem>> {
    state.registrations.kept(service, code)?;
    match find(state, service, code, holder) {
        Ok(registered) => Some(end(state, &registered, service, code).await),
        Err(problem) => Some(Err(problem)),
    }
}

async fn end(state: &State, registered: &Registered, service: &str, code: &str) -> Result<(), Problem> {
    registered.end(End::Deregistered);
    tokio::time::timeout(state.limits.write_time, registered.ended()).await.map_err(|_| {
        let detail =
            format!("deregister {service}/{code}: the registry does not answer; it is removed when it is back");
        Problem::new(Kind::Unavailable, detail)
    })
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

/// The registration; of the holder that is named, if one is: whoever was away for too long must not go on with, or end,
/// what another has registered meanwhile.
fn find(state: &State, service: &str, code: &str, holder: Option<&str>) -> Result<Arc<Registered>, Problem> {
    let registered = state.registrations.find(service, code)?;
    check_holder(&registered, service, code, holder)?;
    Ok(registered)
}

fn check_holder(registered: &Registered, service: &str, code: &str, holder: Option<&str>) -> Result<(), Problem> {
    match holder {
        Some(holder) if !registered.is_of(holder) => {
            let detail = format!("{service}/{code} is registered by another holder");
            Err(Problem::new(Kind::NotRegistered, detail))
        }
        _ => Ok(()),
    }
}

/// Takes over what the same holder has registered, or what is registered by a lease, through an agent that does not answer.
async fn take_over(state: &State, service: &str, code: &str, holder: Option<&str>) -> Option<Arc<Registered>> {
    let instance = state.feed.find(service)?.snapshot().find(code)?.clone();
    let (holder, observer) = (holder.map(Into::into), instance.observer);
    let wish = Wish { instance: Instance::clone(&instance), ttl: None, check: None, holder, observer };
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
    let holder = query.get("holder");
    let reply = match resign_kept(&state, &service, &code, holder).await {
        Some(reply) => reply,
        None => {
            let question =
                Question::Resign { service: service.clone(), code: code.clone(), holder: holder.map(str::to_owned) };
            let asked = state.agents.ask(&question).await?;
            asked.unwrap_or_else(|| find(&state, &service, &code, holder).map(drop))
        }
    };
    reply.map(|()| StatusCode::NO_CONTENT.into_response())
}

/// Lets what this agent keeps resign. `None`: it is not kept here.
pub(crate) async fn resign_kept(
    state: &State,
    service: &str,
    code: &str,
    holder: Option<&str>,
) -> Option<Result<(), Problem>> {
    state.registrations.kept(service, code)?;
    match find(state, service, code, holder) {
        Ok(registered) => Some(state.write(|| format!("resign {service}/{code}"), registered.resign()).await),
        Err(problem) => Some(Err(problem)),
    }
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
    if let Some(registered) = state.registrations.kept(&service, &code) {
        return Ok(stream::answer(Roles::new(&state, registered, None), counted));
    }
    match RolesElsewhere::start(&state, &service, &code).await {
        Some(roles) => Ok(stream::answer(roles?, counted)),
        None => {
            let registered = find(&state, &service, &code, None)?;
            Ok(stream::answer(Roles::new(&state, registered, None), counted))
        }
    }
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

/// The roles of a registration that another agent keeps. That is asked whenever the service has changed, and before what it has said last is
/// no longer certain.
struct RolesElsewhere {
    state: Arc<State>,
    question: Question,
    revision: watch::Receiver<u64>,
    closing: watch::Receiver<bool>,
    /// What is to be told next.
    new: Option<Told>,
    told: Told,
    asked: Instant,
    over: bool,
}

impl RolesElsewhere {
    /// `None`: no other agent keeps it.
    async fn start(state: &Arc<State>, service: &str, code: &str) -> Option<Result<Self, Problem>> {
        let question = Question::Role { service: service.to_owned(), code: code.to_owned() };
        let mut revision = state.feed.topic(service).revision();
        revision.mark_unchanged();
        let (closing, asked) = (state.closing.subscribe(), Instant::now());
        let told: Told = match state.agents.ask(&question).await {
            Ok(None) => return None,
            Ok(Some(Ok(told))) => told,
            Ok(Some(Err(problem))) => return Some(Err(problem)),
            Err(unanswered) => return Some(Err(unanswered.into())),
        };
        let new = Some(told.clone());
        Some(Ok(Self { state: state.clone(), question, revision, closing, new, told, asked, over: false }))
    }

    fn end(&mut self) -> Bytes {
        self.over = true;
        let mut text = BytesMut::new();
        event(&mut text, "end", json!({ "reason": End::Closing.name() }).to_string().as_bytes(), None);
        text.freeze()
    }

    /// Waits for a reason to ask again. `false`: this agent is about to end.
    async fn is_worth_asking(&mut self) -> bool {
        let certain = self.told.expires_in_ms.map(|time| self.asked + Duration::from_millis(time));
        let no_longer_certain = async {
            match certain {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.closing.wait_for(|closing| *closing) => false,
            changed = self.revision.changed() => changed.is_ok(),
            () = no_longer_certain => true,
        }
    }
}

impl Source for RolesElsewhere {
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        loop {
            if let Some(told) = self.new.take() {
                let mut text = BytesMut::new();
                // Strings and numbers: there is nothing in it that JSON cannot say.
                event(&mut text, "role", &serde_json::to_vec(&told).unwrap_or_default(), None);
                return Some(text.freeze());
            }
            if !self.is_worth_asking().await {
                return Some(self.end());
            }
            let asked = Instant::now();
            match self.state.agents.ask::<Told>(&self.question).await {
                Ok(Some(Ok(told))) => {
                    self.asked = asked;
                    if !told.is_same_role(&self.told) {
                        self.new = Some(told.clone());
                    }
                    self.told = told;
                }
                // Whoever keeps it now, if anybody does, is to be found anew.
                Ok(Some(Err(_)) | None) | Err(_) => return Some(self.end()),
            }
        }
    }
}
