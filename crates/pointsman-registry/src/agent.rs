//! The registry behind an agent: everything over its HTTP API (`docs/agent.md`).
//!
//! An instance is registered by a request that stays open, so that it is gone the moment this process dies; and by a lease that is
//! renewed, so that it is gone, too, when the network is cut in silence. The answers to the renewals are what a role
//! lasts by: see [`keep`]. Of several agents one is used, and the next when it does not answer.

mod connect;
mod follow;
mod keep;
mod sse;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper::{Method, StatusCode};
use pointsman_core::{StaleTerm, Term};
use pointsman_net::backoff::Backoff;
use pointsman_net::percent::{PercentEncode, SEGMENT, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::connect::{Agents, Answer, Fault};
use crate::backend::{Backend, Event, FIRST_PAUSE, Scope};
use crate::log::Log;
use crate::masters::Mastership;
use crate::overrides::{ClearedOverrides, Override, OverrideChange, OverrideOf};
use crate::peers::Part;
use crate::registration::{End, Task};
use crate::url::AgentUrl;
use crate::wait::{Obstacle, Outlook, Wait};
use crate::{Error, Result};

/// Maximum time between two attempts to reach an agent.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Path of the first request to an agent. It is cheap, and unlike `/readyz` it requires the token.
const ASKED_FIRST: &str = "/v1/services/pointsman/instances";

/// Agents, any of which will do.
pub(crate) struct Agent {
    agents: Arc<Agents>,
    ttl: Duration,
}

impl Agent {
    pub(crate) fn new(url: AgentUrl) -> Result<Self> {
        let ttl = url.ttl;
        Ok(Self { agents: Arc::new(Agents::new(url)?), ttl })
    }
}

#[async_trait]
impl Backend for Agent {
    async fn connected(&self, wait: Wait<'_>) -> Result<()> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut last = Obstacle::untried();
        let tried = || format!("ask the agent at {}", self.agents);
        let asking = async {
            loop {
                last = match self.agents.call(Method::GET, ASKED_FIRST, None).await {
                    Ok(answer) if answer.status.is_success() && wire::is_list(&answer.body) => return Ok(()),
                    Ok(answer) if answer.status.is_success() => Obstacle::new(
                        Outlook::NoServer,
                        "another kind of server is there: it does not answer as an agent",
                    ),
                    Ok(answer) => match answer.refusal(tried) {
                        Error::Unavailable { reason, .. } => Obstacle::new(Outlook::MayPass, reason),
                        refusal => return Err(refusal),
                    },
                    Err(Fault(obstacle)) => obstacle,
                };
                wait.failed(&last, tried)?;
                tokio::time::sleep(backoff.delay_at(Instant::now().into_std())).await;
            }
        };
        match wait.limit {
            None => asking.await,
            Some(limit) => tokio::time::timeout(limit, asking).await.unwrap_or_else(|_| {
                Err(Error::Unreachable { tried: tried(), waited: limit, reason: last.to_string() })
            }),
        }
    }

    async fn keep(&self, task: Box<Task>) -> End {
        keep::keep(self.agents.clone(), self.ttl, task).await
    }

    async fn follow(&self, scope: Scope, events: mpsc::Sender<Event>) {
        follow::follow(&self.agents, &scope, &events).await;
    }

    async fn set_override(&self, service: &str, code: &str, change: OverrideChange) -> Result<()> {
        let instance = instance_path(service, code);
        let (method, path, body) = match change {
            OverrideChange::Drain => (Method::POST, format!("{instance}/drain"), None),
            OverrideChange::Undrain => (Method::POST, format!("{instance}/undrain"), None),
            OverrideChange::Weight(weight) => {
                let body = serde_json::json!({ "weight": weight }).to_string();
                (Method::PUT, format!("{instance}/weight"), Some(body))
            }
        };
        self.change(method, &path, body, || format!("set what operators want of {service}/{code}")).await
    }

    async fn restore_override(&self, service: &str, code: &str, set: Override) -> Result<()> {
        // All that is known through an agent is who is drained.
        if !set.drained {
            return Ok(());
        }
        let path = format!("{}/drain?if_unset", instance_path(service, code));
        self.change(Method::POST, &path, None, || format!("set what operators want of {service}/{code}")).await
    }

    async fn overrides(&self, service: Option<&str>) -> Result<Vec<OverrideOf>> {
        let step = || "list what operators have set".to_owned();
        let answer = self.agents.call(Method::GET, "/v1/overrides", None).await;
        let mut all: Vec<OverrideOf> = read(answer, step)?;
        all.retain(|set| service.is_none_or(|service| *service == *set.service));
        Ok(all)
    }

    async fn clear_gone(&self, service: Option<&str>) -> Result<ClearedOverrides> {
        let of = service.map(|service| format!("&service={}", segment(service))).unwrap_or_default();
        let step = || "clear what is set for codes that are gone".to_owned();
        read(self.agents.call(Method::DELETE, &format!("/v1/overrides?gone{of}"), None).await, step)
    }

    async fn check_term(&self, service: &str, term: Term) -> Result<Term> {
        let path = format!("/v1/services/{}/check-term", segment(service));
        let body = serde_json::json!({ "term": term.0 }).to_string();
        let step = || format!("check term {term} of {service}");
        match self.agents.call(Method::POST, &path, Some(body)).await {
            Ok(answer) if answer.status.is_success() => Ok(wire::highest(&answer.body).unwrap_or(term)),
            Ok(answer) => Err(match wire::highest(&answer.body).filter(|_| answer.status == StatusCode::CONFLICT) {
                Some(seen) => Error::StaleTerm { service: service.into(), stale: StaleTerm { offered: term, seen } },
                None => answer.refusal(step),
            }),
            Err(fault) => Err(fault.unavailable(step)),
        }
    }

    async fn term_base(&self) -> Result<Term> {
        self.ask_term_base(Method::GET, None, "read the term base").await
    }

    async fn raise_term_base(&self, base: Term) -> Result<Term> {
        let body = serde_json::json!({ "above": base.0 }).to_string();
        self.ask_term_base(Method::PUT, Some(body), "raise the term base").await
    }

    async fn exchange(&self, mut part: Part) {
        // The agents ask each other.
        while let Some(question) = part.questions.recv().await {
            let _ = question.reply.send(None);
        }
    }

    async fn append(&self, log: &Log, _key: &str, _entry: &str) -> Result<()> {
        Err(logged_by_agents("add to", log))
    }

    async fn read_log(&self, log: &Log) -> Result<Vec<String>> {
        let Log::Audit = log else { return Err(logged_by_agents("read", log)) };
        let answer = self.agents.call(Method::GET, "/v1/audit", None).await;
        let newest_first: Vec<serde_json::Value> = read(answer, || format!("read {log}"))?;
        Ok(newest_first.iter().rev().map(ToString::to_string).collect())
    }

    async fn masters(&self, service: &str) -> Result<Vec<Mastership>> {
        let path = format!("/v1/services/{}/history", segment(service));
        read(self.agents.call(Method::GET, &path, None).await, || format!("read the masters of {service}"))
    }

    async fn resign(&self, service: &str, code: &str) -> Result<()> {
        let path = format!("{}/resign", instance_path(service, code));
        self.change(Method::POST, &path, None, || format!("resign {service}/{code}")).await
    }

    async fn deregister(&self, service: &str, code: &str) -> Result<()> {
        self.change(Method::DELETE, &instance_path(service, code), None, || format!("deregister {service}/{code}"))
            .await
    }

    async fn close(&self) {
        self.agents.close();
    }

    fn label(&self) -> String {
        // The same agents may be named in any order.
        let mut agents: Vec<_> = self.agents.to_string().split(',').map(str::to_owned).collect();
        agents.sort_unstable();
        format!("http-{:016x}", crate::disk::fnv1a(agents.join(",").as_bytes()))
    }
}

impl Agent {
    /// Asks for a change that has no answer of its own. An agent asks the others for what it does not keep itself.
    async fn change(&self, method: Method, path: &str, body: Option<String>, step: impl Fn() -> String) -> Result<()> {
        match self.agents.call(method, path, body).await {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) => Err(answer.refusal(step)),
            Err(fault) => Err(fault.unavailable(step)),
        }
    }
}

impl Answer {
    /// Why the agent does not do it.
    fn refusal(&self, step: impl FnOnce() -> String) -> Error {
        let reason = wire::detail(&self.body).unwrap_or_else(|| format!("the agent answers {}", self.status));
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT => Error::unavailable(step(), reason),
            StatusCode::UNAUTHORIZED => {
                Error::refused(step(), format!("{reason} (by token_file=PATH in the url of the agent)"))
            }
            _ => Error::refused(step(), reason),
        }
    }
}

impl Fault {
    fn unavailable(self, step: impl FnOnce() -> String) -> Error {
        Error::unavailable(step(), self.to_string())
    }
}

/// What an agent has answered.
fn read<T: DeserializeOwned>(answer: std::result::Result<Answer, Fault>, step: impl Fn() -> String) -> Result<T> {
    match answer {
        Ok(answer) if answer.status.is_success() => serde_json::from_slice(&answer.body).map_err(|error| {
            let reason = format!("the agent's answer cannot be read: {error}");
            Error::Refused { step: step(), reason, source: Some(Arc::new(error)) }
        }),
        Ok(answer) => Err(answer.refusal(step)),
        Err(fault) => Err(fault.unavailable(step)),
    }
}

fn logged_by_agents(what: &str, log: &Log) -> Error {
    let reason = "over an agent that is for the agent: see /v1/audit and /v1/services/{service}/history".to_owned();
    Error::refused(format!("{what} {log}"), reason)
}

/// Where an instance is in the API. Names hold no slash; what else a path cannot hold is escaped.
fn instance_path(service: &str, code: &str) -> String {
    format!("/v1/services/{}/instances/{}", segment(service), segment(code))
}

impl Agent {
    async fn ask_term_base(&self, method: Method, body: Option<String>, step: &str) -> Result<Term> {
        match self.agents.call(method, "/v1/term-base", body).await {
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => {
                let reason = "the agent is of a version that cannot do that; name its registry, such as zookeeper://HOST:PORT/PREFIX";
                Err(Error::refused(step, reason))
            }
            Ok(answer) if answer.status.is_success() => {
                let missing = || Error::unavailable(step, "the agent's answer has no term base");
                wire::term_base(&answer.body).ok_or_else(missing)
            }
            Ok(answer) => Err(answer.refusal(|| step.to_owned())),
            Err(fault) => Err(fault.unavailable(|| step.to_owned())),
        }
    }
}

/// A name as a segment of a path, or a value of a query.
fn segment(name: &str) -> PercentEncode<'_> {
    utf8_percent_encode(name, SEGMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_paths() {
        assert_eq!(instance_path("a b", "名:1"), "/v1/services/a%20b/instances/%E5%90%8D%3A1");
    }
}
