//! Everything as it happens: as a stream, or as one answer that comes when there is something to say.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Of;
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::header::HeaderName;
use hyper::{HeaderMap, StatusCode, Uri};
use pointsman_core::check_name;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::body;
use super::find::REVISION;
use super::input::{OfService, Query};
use super::stream::{Source, answer, counted};
use crate::State;
use crate::feed::{Group, Topic, event, event_around, now_ms};
use crate::problem::Problem;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How long to wait for something to happen when nobody says.
const WAIT: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(300);
/// So much is written at a time: who reads slowly does not make us keep more.
const CHUNK: usize = 64 << 10;
/// So many services may be named.
const SERVICES: usize = 1000;
/// Why somebody starts over.
const UNKNOWN: &str = "what came after this event is not known here";
const SLOW: &str = "you were too slow";

/// `GET /v1/services/{service}/changes`.
pub(super) async fn changes(
    Of(state): Of<Arc<State>>,
    OfService(service): OfService,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["after", "wait"], None)?;
    let _counted = counted(&state)?;
    let wait = query.duration("wait", Duration::ZERO, LONGEST)?.unwrap_or(WAIT);
    Ok(poll(&state.feed.topic(&service), query.number("after")?, wait, state.closing.subscribe()).await)
}

/// `GET /v1/services/{service}/watch`. With `after` or `wait` it answers as `changes` does, for clients from before that had a path of its own.
pub(super) async fn service(
    Of(state): Of<Arc<State>>,
    OfService(service): OfService,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["after", "wait"], None)?;
    let counted = counted(&state)?;
    let topic = state.feed.topic(&service);
    let (after, wait) = (query.number("after")?, query.duration("wait", Duration::ZERO, LONGEST)?);
    if after.is_some() || wait.is_some() {
        return Ok(poll(&topic, after, wait.unwrap_or(WAIT), state.closing.subscribe()).await);
    }
    let place = headers.get(LAST_EVENT_ID).map(|id| id.to_str().ok().and_then(|id| id.parse().ok()));
    let mut watching = OfOne {
        place: 0,
        revision: topic.revision(),
        stale: state.feed.stale(),
        closing: state.closing.subscribe(),
        next: VecDeque::new(),
        topic,
        state,
    };
    watching.begin(place);
    Ok(answer(watching, counted))
}

/// One answer, when something has happened after a revision, or after a while.
async fn poll(topic: &Topic, after: Option<u64>, wait: Duration, mut closing: watch::Receiver<bool>) -> Response {
    let mut revision = topic.revision();
    // 0 stands for nothing: it is answered with everything, as soon as there is anything.
    let known = |after: u64| match after {
        0 => topic.nothing_yet().map(|revision| (revision, Vec::new())),
        _ => topic.after(after).map(|groups| (after, groups)),
    };
    if let Some((place, groups)) = after.and_then(known)
        && groups.is_empty()
    {
        tokio::select! {
            _ = revision.wait_for(|revision| *revision != place) => {}
            () = tokio::time::sleep(wait) => {}
            () = is_closing(&mut closing) => {}
        }
    }
    let (revision, events) = match after.and_then(known) {
        Some((place, groups)) => {
            let revision = groups.last().map_or(place, |(revision, _)| *revision);
            (revision, objects(groups.iter().map(|(_, group)| &**group)))
        }
        None => {
            let whole = topic.whole();
            let mut event =
                BytesMut::from(format!("{{\"event\":\"snapshot\",\"at_ms\":{},\"data\":", now_ms()).as_bytes());
            event.put_slice(&whole.body);
            event.put_u8(b'}');
            (whole.revision, event.freeze())
        }
    };
    let service = json!(topic.service());
    let mut text = BytesMut::from(format!("{{\"service\":{service},\"revision\":{revision},\"events\":[").as_bytes());
    text.put_slice(&events);
    text.put_slice(b"]}");
    let mut response = body(StatusCode::OK, text.freeze());
    response.headers_mut().insert(REVISION, revision.into());
    response
}

/// Events as objects in JSON, with commas between them.
pub(super) fn objects<'a>(groups: impl Iterator<Item = &'a Group>) -> Bytes {
    let mut objects = BytesMut::new();
    for group in groups {
        if !objects.is_empty() {
            objects.put_u8(b',');
        }
        group.write_json(&mut objects);
    }
    objects.freeze()
}

/// Who watches one service.
struct OfOne {
    state: Arc<State>,
    topic: Arc<Topic>,
    /// The revision that has been told.
    place: u64,
    revision: watch::Receiver<u64>,
    stale: watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
    /// What is to be said first.
    next: VecDeque<Bytes>,
}

impl OfOne {
    /// Starts at a place, if it is known; `Some(None)` is one that cannot be.
    fn begin(&mut self, place: Option<Option<u64>>) {
        let known = place.flatten().and_then(|place| Some((place, self.topic.after(place)?)));
        match known {
            Some((place, _)) => self.place = place,
            None => self.start_over(place.map(|_| UNKNOWN)),
        }
        self.revision.mark_changed();
        self.next.push_back(self.state.feed.freshness_event());
    }

    fn start_over(&mut self, reason: Option<&str>) {
        self.next.extend(reason.map(|reason| resync(&self.state, reason)));
        let whole = self.topic.whole();
        self.next.extend(event_around("snapshot", whole.body, &whole.revision.to_string()));
        self.place = whole.revision;
    }

    /// What has happened since the place.
    fn read(&mut self) {
        self.revision.mark_unchanged();
        let mut text = BytesMut::new();
        match self.topic.after(self.place) {
            Some(groups) => {
                let place = &mut self.place;
                let more = write(&groups, &mut text, |number, group, text| {
                    *place = number;
                    group.write(text, &number.to_string());
                });
                if more {
                    self.revision.mark_changed();
                }
            }
            None => self.start_over(Some(SLOW)),
        }
        self.next.extend((!text.is_empty()).then(|| text.freeze()));
    }
}

impl Source for OfOne {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(next) = self.next.pop_front() {
                return Some(next);
            }
            tokio::select! {
                biased;
                () = is_closing(&mut self.closing) => return None,
                _ = self.revision.changed() => self.read(),
                _ = self.stale.changed() => self.next.push_back(self.state.feed.freshness_event()),
            }
        }
    }
}

/// Returns when the agent is about to end.
async fn is_closing(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Writes groups until it is enough for once; whether some are left.
fn write(groups: &[(u64, Arc<Group>)], text: &mut BytesMut, mut write: impl FnMut(u64, &Group, &mut BytesMut)) -> bool {
    for (index, (number, group)) in groups.iter().enumerate() {
        if index > 0 && text.len() > CHUNK {
            return true;
        }
        write(*number, group, text);
    }
    false
}

fn resync(state: &State, reason: &str) -> Bytes {
    state.metrics.resyncs.inc();
    let mut text = BytesMut::new();
    event(&mut text, "resync", json!({ "reason": reason }).to_string().as_bytes(), None);
    text.freeze()
}

/// `GET /v1/watch`.
pub(super) async fn all(Of(state): Of<Arc<State>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let query = Query::read(&uri, &["service", "load"], Some("service"))?;
    let services: BTreeSet<Arc<str>> = query.all("service").map(Into::into).collect();
    services.iter().try_for_each(|service| check_name("service", service))?;
    if services.len() > SERVICES {
        return Err(Problem::bad(format!("query: at most {SERVICES} services can be named; leave all out for all")));
    }
    let load = query.duration("load", Duration::from_millis(100), LONGEST)?;
    let counted = counted(&state)?;
    let place = headers.get(LAST_EVENT_ID).map(|id| id.to_str().ok().and_then(|id| state.feed.number(id)));
    let mut watching = OfAll {
        services,
        place: 0,
        last: state.feed.last(),
        stale: state.feed.stale(),
        closing: state.closing.subscribe(),
        next: VecDeque::new(),
        load: load.map(|every| Load { every, at: Instant::now(), told: String::new() }),
        state,
    };
    watching.begin(place);
    Ok(answer(watching, counted))
}

/// Who watches all services, or several.
struct OfAll {
    state: Arc<State>,
    /// Empty for all.
    services: BTreeSet<Arc<str>>,
    place: u64,
    last: watch::Receiver<u64>,
    stale: watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
    next: VecDeque<Bytes>,
    load: Option<Load>,
}

/// How much is in flight, told now and then.
struct Load {
    every: Duration,
    at: Instant,
    told: String,
}

impl OfAll {
    fn begin(&mut self, place: Option<Option<u64>>) {
        match place.flatten().filter(|place| self.state.feed.after(*place).is_some()) {
            Some(place) => self.place = place,
            None => self.start_over(place.map(|_| UNKNOWN)),
        }
        self.last.mark_changed();
        self.next.push_back(self.state.feed.freshness_event());
    }

    fn start_over(&mut self, reason: Option<&str>) {
        self.next.extend(reason.map(|reason| resync(&self.state, reason)));
        // Before what it is the place of: what happens meanwhile is told once more, and changes nothing.
        self.place = *self.last.borrow();
        let about = json!({ "version": env!("CARGO_PKG_VERSION"), "started_ms": self.state.started_ms });
        let directory = self.state.feed.directory();
        let (registry_id, since) = (json!(directory.registry_id()), json!(directory.registry_since_ms()));
        let registry = json!(self.state.registry.url());
        let registry = format!("\"registry\":{registry},\"registry_id\":{registry_id},\"registry_since_ms\":{since}");
        let about = format!("{registry},\"agent\":{about}");
        self.next.extend(self.state.feed.reset_event(&self.services, &about, self.place));
    }

    fn read(&mut self) {
        self.last.mark_unchanged();
        let mut text = BytesMut::new();
        match self.state.feed.after(self.place) {
            Some(groups) => {
                let (place, services, feed) = (&mut self.place, &self.services, &self.state.feed);
                let more = write(&groups, &mut text, |number, group, text| {
                    *place = number;
                    let is_wanted = match &group.service {
                        Some(service) => services.is_empty() || services.contains(service),
                        None => services.is_empty(),
                    };
                    if is_wanted {
                        group.write(text, &feed.id(number));
                    }
                });
                if more {
                    self.last.mark_changed();
                }
            }
            None => self.start_over(Some(SLOW)),
        }
        self.next.extend((!text.is_empty()).then(|| text.freeze()));
    }

    /// What is in flight, if it is not what was told.
    fn read_load(&mut self) {
        let Some(load) = &mut self.load else { return };
        load.at = Instant::now() + load.every;
        let in_flight = self.state.claims.in_flight();
        if in_flight == load.told {
            return;
        }
        let mut text = BytesMut::new();
        event(&mut text, "load", in_flight.as_bytes(), None);
        load.told = in_flight;
        self.next.push_back(text.freeze());
    }
}

impl Source for OfAll {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(next) = self.next.pop_front() {
                return Some(next);
            }
            let load = self.load.as_ref().map(|load| load.at);
            let load = async {
                match load {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = is_closing(&mut self.closing) => return None,
                _ = self.last.changed() => self.read(),
                _ = self.stale.changed() => self.next.push_back(self.state.feed.freshness_event()),
                () = load => self.read_load(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(topic: &Topic, after: u64) -> serde_json::Value {
        let (_open, closing) = watch::channel(false);
        let answer = poll(topic, Some(after), Duration::from_secs(1), closing).await;
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_service_of_which_nothing_is_known_waits_at_whatever_revision() {
        for revision in [0, 70] {
            let topic = Topic::new("s".into(), revision);
            let nothing = json!({ "service": "s", "revision": revision, "events": [] });
            assert_eq!([answered(&topic, 0).await, answered(&topic, revision).await], [nothing.clone(), nothing]);
        }
        let topic = Topic::new("s".into(), 70);
        let started = Instant::now();
        let whole = answered(&topic, 60).await;
        assert_eq!((&whole["revision"], &whole["events"][0]["event"]), (&json!(70), &json!("snapshot")));
        assert_eq!(started.elapsed(), Duration::ZERO, "who resumes at what is forgotten starts over at once");
    }
}
