//! The JSON of the agent's API, read. Fields that are not known here are of a later version.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_core::{Instance, ObservedInstance, Problem, Role, Status, Term};
use serde::Deserialize;

/// An instance.
#[derive(Debug, Deserialize)]
pub(super) struct InstanceJson {
    pub(super) service: Arc<str>,
    pub(super) code: Arc<str>,
    address: Option<Arc<str>>,
    weight: u32,
    role: String,
    term: Option<u64>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    observer: bool,
    status: String,
    guarded_since_ms: Option<u64>,
}

impl From<InstanceJson> for Arc<ObservedInstance> {
    fn from(json: InstanceJson) -> Self {
        let mut registered = Instance::with_code(json.service, json.code).weight(json.weight);
        (registered.address, registered.tags) = (json.address, json.tags);
        let mut instance = ObservedInstance::new(registered, role(&json.role, json.term));
        instance.observer = json.observer;
        instance.status = if json.status == Status::Drained.name() { Status::Drained } else { Status::Passing };
        instance.guarded_since = json.guarded_since_ms.map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        Arc::new(instance)
    }
}

/// What its words mean.
fn role(name: &str, term: Option<u64>) -> Role {
    match (name, term) {
        ("master", Some(term)) => Role::Master(Term(term)),
        ("normal", _) => Role::Normal,
        _ => Role::Detached,
    }
}

/// What was found in the registry, but could not be taken.
#[derive(Debug, Deserialize)]
pub(super) struct ProblemJson {
    node: String,
    reason: String,
    skipped: bool,
}

impl From<ProblemJson> for Problem {
    fn from(ProblemJson { node, reason, skipped }: ProblemJson) -> Self {
        Problem { node, reason, skipped }
    }
}

/// A service, whole.
#[derive(Debug, Deserialize)]
pub(super) struct SnapshotJson {
    pub(super) service: Arc<str>,
    pub(super) revision: u64,
    pub(super) instances: Vec<InstanceJson>,
    #[serde(default)]
    pub(super) problems: Vec<ProblemJson>,
}

/// Everything.
#[derive(Debug, Deserialize)]
pub(super) struct ResetJson {
    pub(super) services: Vec<SnapshotJson>,
    /// Which data the agent's registry holds.
    pub(super) registry_id: Option<String>,
    /// Since when it has been holding them, where the agent can tell.
    pub(super) registry_since_ms: Option<u64>,
}

/// A change of a service: which fields are there depends on the event.
#[derive(Debug, Deserialize)]
pub(super) struct ChangeJson {
    pub(super) service: Arc<str>,
    pub(super) revision: u64,
    pub(super) instance: Option<InstanceJson>,
    pub(super) master: Option<InstanceJson>,
    pub(super) before: Option<InstanceJson>,
    pub(super) problems: Option<Vec<ProblemJson>>,
    /// Of one that is gone: how.
    pub(super) reason: Option<String>,
}

/// Whether the agent's registry is there.
#[derive(Debug, Deserialize)]
pub(super) struct FreshnessJson {
    pub(super) state: String,
}

/// What an agent says of a registration.
#[derive(Debug, Deserialize)]
pub(super) struct RoleJson {
    role: String,
    term: Option<u64>,
    expires_in_ms: Option<u64>,
    pub(super) reason: Option<String>,
}

impl RoleJson {
    pub(super) fn role(&self) -> Role {
        role(&self.role, self.term)
    }

    pub(super) fn expires_in(&self) -> Option<Duration> {
        self.expires_in_ms.map(Duration::from_millis)
    }
}

/// How a registration has ended.
#[derive(Debug, Deserialize)]
pub(super) struct EndJson {
    pub(super) reason: String,
    pub(super) detail: Option<String>,
}

/// Reads the highest term out of an answer, or out of a problem.
pub(super) fn highest(body: &[u8]) -> Option<Term> {
    #[derive(Deserialize)]
    struct HighestJson {
        highest: u64,
    }
    serde_json::from_slice::<HighestJson>(body).ok().map(|highest| Term(highest.highest))
}

/// Whether an answer is a list, as agents write it.
pub(super) fn is_list(body: &[u8]) -> bool {
    serde_json::from_slice::<Vec<serde::de::IgnoredAny>>(body).is_ok()
}

/// Reads the term base out of an answer.
pub(super) fn term_base(body: &[u8]) -> Option<Term> {
    #[derive(Deserialize)]
    struct TermBaseJson {
        term_base: u64,
    }
    serde_json::from_slice::<TermBaseJson>(body).ok().map(|base| Term(base.term_base))
}

/// What a problem says (RFC 9457).
pub(super) fn detail(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct ProblemJson {
        detail: String,
    }
    serde_json::from_slice::<ProblemJson>(body).ok().map(|problem| problem.detail)
}
