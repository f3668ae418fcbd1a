//! Follows services for a directory, by one stream of events; when it breaks, by the next agent's, from the same place.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hyper::Method;
use pointsman_core::{ObservedInstance, Problem, Status};
use pointsman_net::backoff::Backoff;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connect::{Agents, Stream};
use super::segment;
use super::sse;
use super::wire::{ChangeJson, FreshnessJson, ResetJson, SnapshotJson};
use crate::backend::{Event, FIRST_PAUSE, Scope, ServiceState};
use crate::overrides::{Identity, Override, Overrides};

/// Beyond so many services all are followed, and the others left out.
const NAMED: usize = 500;

/// Why an instance is gone that has left cleanly, in the agent's word.
const LEFT: &str = "left";

/// Sends what `scope` holds, and every change of it, until `events` is closed.
pub(super) async fn follow(agents: &Agents, scope: &Scope, events: &mpsc::Sender<Event>) {
    let path = path(scope);
    let mut mirror = Mirror::default();
    let (mut place, mut backoff) = (agents.current(), Backoff::new(FIRST_PAUSE, super::LONGEST_PAUSE));
    let mut failures = 0;
    loop {
        let reason = tokio::select! {
            reason = by(agents, place, &path, &mut mirror, scope, events, &mut failures) => reason,
            () = events.closed() => return,
        };
        tracing::debug!(agent = agents.address(place), reason, "the stream of events has broken");
        if events.send(Event::Stale).await.is_err() {
            return;
        }
        place = agents.after(place);
        failures += 1;
        // Each of them once, at once.
        if failures >= agents.len() {
            tokio::time::sleep(backoff.delay_at(Instant::now().into_std())).await;
        }
    }
}

fn path(scope: &Scope) -> String {
    match scope {
        Scope::Services(services) if services.len() <= NAMED => {
            let named: Vec<String> = services.iter().map(|service| format!("service={}", segment(service))).collect();
            format!("/v1/watch?{}", named.join("&"))
        }
        _ => "/v1/watch".to_owned(),
    }
}

/// Follows by one agent; returns why that is over.
async fn by(
    agents: &Agents,
    place: usize,
    path: &str,
    mirror: &mut Mirror,
    scope: &Scope,
    events: &mpsc::Sender<Event>,
    failures: &mut usize,
) -> String {
    let mut stream: Stream = match agents.stream(place, Method::GET, path, None, mirror.last_id.as_deref()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(answer)) => {
            let error = answer.refusal(|| format!("watch at {}", agents.address(place)));
            tracing::warn!(%error, "the agent gives no events");
            if !error.is_retryable() {
                // Whoever has gone does not need to know.
                let _ = events.send(Event::Refused(error.to_string().into())).await;
            }
            return error.to_string();
        }
        Err(fault) => return fault.to_string(),
    };
    let mut is_stale = true;
    loop {
        let event = match stream.next().await {
            Ok(event) => event,
            Err(reason) => return reason,
        };
        let told = match mirror.take(event, scope, &mut is_stale) {
            Ok(told) => told,
            Err(reason) => {
                // What cannot be read must not be passed over: everything is asked for again.
                mirror.last_id = None;
                return reason;
            }
        };
        *failures = 0;
        if let Some(told) = told
            && events.send(told).await.is_err()
        {
            return "nobody follows any more".to_owned();
        }
    }
}

/// What the agent has told of each service.
#[derive(Debug, Default)]
struct Mirror {
    services: HashMap<Arc<str>, Mirrored>,
    /// Which data the agent's registry holds, as the last agent said that could tell.
    identity: Option<Identity>,
    /// Where to go on.
    last_id: Option<String>,
}

#[derive(Debug, Default)]
struct Mirrored {
    revision: u64,
    instances: BTreeMap<Arc<str>, Arc<ObservedInstance>>,
    problems: Vec<Problem>,
    /// Who has left cleanly, and has not been told of.
    left: Vec<Arc<str>>,
}

impl Mirror {
    /// Takes in an event; what of it is to be told.
    fn take(&mut self, event: sse::Event, scope: &Scope, is_stale: &mut bool) -> Result<Option<Event>, String> {
        let sse::Event { name, data, id } = event;
        let told = match name.as_str() {
            "reset" => {
                let reset: ResetJson = read(&data)?;
                let wanted = reset.services.into_iter().filter(|service| scope.contains(&service.service));
                self.services = wanted.map(|json| (json.service.clone(), Mirrored::from(json))).collect();
                // One agent may not know yet what another has told: that is no other registry.
                let told = reset.registry_id.map(|id| Identity { id, since_unix_ms: reset.registry_since_ms });
                self.identity = told.or(self.identity.take());
                *is_stale = false;
                Some(self.reset())
            }
            "put" | "guarded" | "delete" | "master" | "service" => {
                let change: ChangeJson = read(&data)?;
                let (service, is_last) = (change.service.clone(), id.is_some());
                if !scope.contains(&service) {
                    self.last_id = id.or(self.last_id.take());
                    return Ok(None);
                }
                self.services.entry(service.clone()).or_default().change(&name, change, is_last);
                // What has changed together is told together.
                is_last.then(|| Event::Put(self.state(&service)))
            }
            "freshness" => {
                let FreshnessJson { state } = read(&data)?;
                let was_stale = std::mem::replace(is_stale, state != "fresh");
                match (was_stale, *is_stale) {
                    (false, true) => Some(Event::Stale),
                    (true, true) => Some(Event::Stale),
                    (true, false) => Some(self.reset()),
                    (false, false) => None,
                }
            }
            // Of a later version, or nothing to us.
            _ => None,
        };
        if id.is_some() {
            self.last_id = id;
        }
        Ok(told)
    }

    fn reset(&mut self) -> Event {
        let present = self.services.iter().filter(|(_, mirrored)| !mirrored.is_empty() || !mirrored.left.is_empty());
        let services: Vec<Arc<str>> = present.map(|(service, _)| service.clone()).collect();
        Event::Reset {
            states: services.iter().map(|service| self.state(service)).collect(),
            identity: self.identity.clone(),
        }
    }

    fn state(&mut self, service: &Arc<str>) -> ServiceState {
        let Some(mirrored) = self.services.get_mut(service) else { return ServiceState::empty(service.clone()) };
        let is_gone = mirrored.is_empty();
        let state = ServiceState {
            service: service.clone(),
            revision: mirrored.revision,
            instances: mirrored.instances.values().cloned().collect(),
            problems: mirrored.problems.clone(),
            overrides: mirrored.drains(),
            left: std::mem::take(&mut mirrored.left),
        };
        if is_gone {
            // It may have been named for this once.
            self.services.remove(service);
        }
        state
    }
}

impl Mirrored {
    /// What is known of operators' settings: an instance of weight 0 is told to be drained as well, whoever has set that.
    fn drains(&self) -> Overrides {
        let drained = |instance: &&Arc<ObservedInstance>| instance.status == Status::Drained && instance.weight > 0;
        let drained = self.instances.values().filter(drained);
        drained.map(|instance| (instance.code.clone(), Override { drained: true, weight: None })).collect()
    }

    fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.problems.is_empty()
    }

    fn change(&mut self, name: &str, change: ChangeJson, is_last: bool) {
        // What was in the reset already is told once more.
        if change.revision <= self.revision {
            return;
        }
        if is_last {
            self.revision = change.revision;
        }
        match name {
            "delete" => {
                if let Some(instance) = change.instance {
                    self.instances.remove(&instance.code);
                    if change.reason.as_deref() == Some(LEFT) {
                        self.left.push(instance.code);
                    }
                }
            }
            "put" | "guarded" => self.put(change.instance),
            "master" => {
                // Who was master is shown as what it is now, if it is still there.
                if let Some(before) = change.before.filter(|before| self.instances.contains_key(&before.code)) {
                    self.put(Some(before));
                }
                self.put(change.master);
            }
            _ => {
                if let Some(problems) = change.problems {
                    self.problems = problems.into_iter().map(Problem::from).collect();
                }
            }
        }
    }

    fn put(&mut self, instance: Option<super::wire::InstanceJson>) {
        if let Some(instance) = instance.map(Arc::<ObservedInstance>::from) {
            self.instances.insert(instance.code.clone(), instance);
        }
    }
}

impl From<SnapshotJson> for Mirrored {
    fn from(json: SnapshotJson) -> Self {
        let instances = json.instances.into_iter().map(Arc::<ObservedInstance>::from);
        Self {
            revision: json.revision,
            instances: instances.map(|instance| (instance.code.clone(), instance)).collect(),
            problems: json.problems.into_iter().map(Problem::from).collect(),
            left: Vec::new(),
        }
    }
}

fn read<T: DeserializeOwned>(data: &str) -> Result<T, String> {
    serde_json::from_str(data).map_err(|error| format!("an event that cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_have_vanished_are_forgotten_and_who_has_left_is_told() {
        let mut mirror = Mirror::default();
        let mut take = |name: &str, revision: u64, more: &str| {
            let data = format!(
                r#"{{"service":"s","revision":{revision},"instance":{{"service":"s","code":"a","weight":1,"role":"normal","status":"passing"}}{more}}}"#
            );
            let event = sse::Event { name: name.to_owned(), data, id: Some(format!("x-{revision}")) };
            match mirror.take(event, &Scope::All, &mut false).unwrap() {
                Some(Event::Put(state)) => (state.instances.len(), state.left.len(), mirror.services.len()),
                told => panic!("{told:?}"),
            }
        };
        assert_eq!(take("put", 1, ""), (1, 0, 1));
        assert_eq!(take("delete", 2, r#","reason":"left""#), (0, 1, 0));
        assert_eq!(take("put", 3, ""), (1, 0, 1));
    }

    #[test]
    fn an_agent_tells_since_when_its_registry_holds_its_data() {
        let data = r#"{"services":[],"registry_id":"x","registry_since_ms":7}"#.to_owned();
        let event = sse::Event { name: "reset".to_owned(), data, id: None };
        let told = Mirror::default().take(event, &Scope::All, &mut true).unwrap();
        let Some(Event::Reset { identity, .. }) = told else { panic!("{told:?}") };
        assert_eq!(identity, Some(Identity { id: "x".to_owned(), since_unix_ms: Some(7) }));
    }
}
