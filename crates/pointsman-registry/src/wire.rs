//! The JSON that the agent's API and the command line speak. Programs read it: fields may be added, never renamed or removed.
//!
//! What is written borrows from the nouns it shows, and comes from here; `agent` reads it back.

use std::collections::BTreeMap;
use std::time::SystemTime;

#[cfg(feature = "balance")]
use pointsman_balance::{Considered, Explanation, Tier};
use pointsman_core::{ObservedInstance, Problem, Role, Snapshot, Status};
use serde::Serialize;

/// An instance, or what was found in its place.
#[derive(Debug, Serialize)]
pub struct InstanceJson<'a> {
    service: &'a str,
    /// Null only for what is `invalid` or `clamped`.
    code: Option<&'a str>,
    address: Option<&'a str>,
    weight: u32,
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    tags: &'a BTreeMap<String, String>,
    /// Whether it is never master; left out where it may be.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    observer: bool,
    status: &'static str,
    /// Since when it is guarded, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    guarded_since_ms: Option<u64>,
    /// The node of the registry in which something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

static NO_TAGS: BTreeMap<String, String> = BTreeMap::new();

impl<'a> InstanceJson<'a> {
    /// An instance.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, ObservedInstance, Role, Term};
    /// # use pointsman_registry::wire::InstanceJson;
    /// let mut instance = ObservedInstance::from(Instance::new("ress").code("a").address("10.0.0.1:80"));
    /// instance.role = Role::Master(Term(7));
    /// let json = serde_json::to_value(InstanceJson::new(&instance))?;
    /// assert_eq!((&json["role"], &json["term"], &json["status"]), (&"master".into(), &7.into(), &"passing".into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn new(instance: &'a ObservedInstance) -> Self {
        Self {
            service: &instance.service,
            code: Some(&instance.code),
            address: instance.address.as_deref(),
            weight: instance.weight,
            role: instance.role.name(),
            term: instance.role.term().map(|term| term.0),
            tags: &instance.tags,
            observer: instance.observer,
            status: status(instance),
            guarded_since_ms: instance.guarded_since.map(unix_ms),
            node: None,
            reason: None,
        }
    }

    /// What is not an instance, or not quite. Of the latter the instance is listed too.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Problem;
    /// # use pointsman_registry::wire::InstanceJson;
    /// let problem = Problem { node: "normal0000000001".to_owned(), reason: "not JSON".to_owned(), skipped: true };
    /// let json = serde_json::to_value(InstanceJson::problem("ress", &problem))?;
    /// assert_eq!((&json["code"], &json["status"]), (&serde_json::Value::Null, &"invalid".into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn problem(service: &'a str, problem: &'a Problem) -> Self {
        Self {
            service,
            code: None,
            address: None,
            weight: 0,
            role: if problem.node == "master" { "master" } else { "normal" },
            term: None,
            tags: &NO_TAGS,
            observer: false,
            status: problem_status(problem),
            guarded_since_ms: None,
            node: Some(&problem.node),
            reason: Some(&problem.reason),
        }
    }
}

/// `passing`, `drained` or `guarded`: whether an instance may be given work. A weight of 0 means drained, whoever has set it.
///
/// # Examples
///
/// ```
/// # use pointsman_core::{Instance, ObservedInstance};
/// let instance = ObservedInstance::from(Instance::new("ress").weight(0));
/// assert_eq!(pointsman_registry::wire::status(&instance), "drained");
/// ```
#[must_use]
pub fn status(instance: &ObservedInstance) -> &'static str {
    match instance.status {
        Status::Passing if instance.weight == 0 => Status::Drained.name(),
        Status::Passing if instance.is_guarded() => GUARDED,
        status => status.name(),
    }
}

/// The status of an instance that the registry has lost in a sudden mass loss.
pub(crate) const GUARDED: &str = "guarded";

fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

/// The word for what is wrong.
///
/// # Examples
///
/// ```
/// # use pointsman_core::Problem;
/// let problem = Problem { node: "master".to_owned(), reason: "weight 2000000".to_owned(), skipped: false };
/// assert_eq!(pointsman_registry::wire::problem_status(&problem), "clamped"); // the instance is listed
/// ```
#[must_use]
pub fn problem_status(problem: &Problem) -> &'static str {
    if problem.skipped { "invalid" } else { "clamped" }
}

/// What was found in the registry, but could not be taken as it is.
///
/// # Examples
///
/// ```
/// # use pointsman_core::Problem;
/// # use pointsman_registry::wire::ProblemJson;
/// let problem = Problem { node: "master".to_owned(), reason: "not JSON".to_owned(), skipped: true };
/// let json = serde_json::to_string(&ProblemJson::from(&problem))?;
/// assert_eq!(json, r#"{"node":"master","reason":"not JSON","skipped":true}"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Serialize)]
pub struct ProblemJson<'a> {
    node: &'a str,
    reason: &'a str,
    skipped: bool,
}

impl<'a> From<&'a Problem> for ProblemJson<'a> {
    fn from(Problem { node, reason, skipped }: &'a Problem) -> Self {
        Self { node, reason, skipped: *skipped }
    }
}

/// A service in a list.
#[derive(Debug, Serialize)]
pub struct ServiceJson<'a> {
    service: &'a str,
    instances: usize,
    /// The master's code.
    master: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    problems: usize,
    revision: u64,
    guarded: bool,
}

impl<'a> ServiceJson<'a> {
    /// A service as its snapshot shows it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Snapshot;
    /// # use pointsman_registry::wire::ServiceJson;
    /// let json = serde_json::to_value(ServiceJson::new(&Snapshot::empty("ress")))?;
    /// assert_eq!((&json["service"], &json["instances"]), (&"ress".into(), &0.into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            service: snapshot.service(),
            instances: snapshot.instances().len(),
            master: snapshot.master().map(|master| &*master.code),
            term: snapshot.master().and_then(|master| master.role.term()).map(|term| term.0),
            problems: snapshot.problems().len(),
            revision: snapshot.revision(),
            guarded: snapshot.is_guarded(),
        }
    }
}

/// A role, as `register` writes it a line.
///
/// # Examples
///
/// ```
/// # use pointsman_core::{Role, Term};
/// # use pointsman_registry::wire::RoleJson;
/// let json = serde_json::to_string(&RoleJson::from(Role::Master(Term(7))))?;
/// assert_eq!(json, r#"{"event":"role","role":"master","term":7}"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Serialize)]
pub struct RoleJson {
    event: &'static str,
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
}

impl From<Role> for RoleJson {
    fn from(role: Role) -> Self {
        Self { event: "role", role: role.name(), term: role.term().map(|term| term.0) }
    }
}

/// Where a pick was made from, and where each instance stands; `docs/choosing.md` says what the tiers are.
///
/// # Examples
///
/// ```
/// use pointsman_balance::Algorithm;
/// # use pointsman_core::Instance;
/// # use pointsman_registry::Registry;
/// # use pointsman_registry::wire::ExplanationJson;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let registry = Registry::connect("memory://explanation").await?;
/// # let _registration = registry.register(Instance::new("ress").code("a")).await?;
/// let balancer = registry.discover("ress").await?.balancer(Algorithm::RoundRobin);
/// let explained = serde_json::to_value(ExplanationJson::new(&balancer.explain("")))?;
/// assert_eq!(explained["instances"][0]["code"], "a");
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "balance")]
#[derive(Debug, Serialize)]
pub struct ExplanationJson<'a> {
    revision: u64,
    algorithm: &'static str,
    role: &'static str,
    tier: Option<u8>,
    reason: Option<String>,
    panic: bool,
    instances: Vec<ConsideredJson<'a>>,
}

#[cfg(feature = "balance")]
#[derive(Debug, Serialize)]
struct ConsideredJson<'a> {
    code: &'a str,
    role: &'static str,
    standing: &'static str,
    tier: Option<u8>,
    excluded: bool,
    in_flight: usize,
    weight: f64,
}

#[cfg(feature = "balance")]
impl<'a> ExplanationJson<'a> {
    /// Of an explanation.
    #[must_use]
    pub fn new(explanation: &'a Explanation) -> Self {
        let considered = |one: &'a Considered| ConsideredJson {
            code: &one.instance.code,
            role: one.instance.role.name(),
            standing: one.standing.name(),
            tier: one.tier.map(Tier::number),
            excluded: one.excluded,
            in_flight: one.in_flight,
            weight: one.weight,
        };
        Self {
            revision: explanation.revision,
            algorithm: explanation.algorithm.name(),
            role: explanation.candidates.name(),
            tier: explanation.tier.map(Tier::number),
            reason: explanation.tier.map(|tier| tier.to_string()),
            panic: explanation.panic,
            instances: explanation.instances.iter().map(considered).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::Term;

    use pointsman_core::Instance;

    use super::*;

    #[test]
    fn an_instance_as_the_contract_says() {
        let mut instance =
            ObservedInstance::from(Instance::new("ress").code("a").address("h:1").weight(3).tag("zone", "eu"));
        instance.role = Role::Master(Term(7));
        assert_eq!(
            serde_json::to_string(&InstanceJson::new(&instance)).unwrap(),
            r#"{"service":"ress","code":"a","address":"h:1","weight":3,"role":"master","term":7,"tags":{"zone":"eu"},"status":"passing"}"#
        );
        let mut instance = ObservedInstance::from(Instance::new("cfgs").code("b").weight(0));
        instance.role = Role::Normal;
        assert_eq!(
            serde_json::to_string(&InstanceJson::new(&instance)).unwrap(),
            r#"{"service":"cfgs","code":"b","address":null,"weight":0,"role":"normal","tags":{},"status":"drained"}"#
        );
    }

    #[test]
    fn role_lines_as_the_contract_says() {
        let line = |role: Role| serde_json::to_string(&RoleJson::from(role)).unwrap();
        assert_eq!(line(Role::Master(Term(9))), r#"{"event":"role","role":"master","term":9}"#);
        assert_eq!(line(Role::Normal), r#"{"event":"role","role":"normal"}"#);
        assert_eq!(line(Role::Detached), r#"{"event":"role","role":"detached"}"#);
    }
}
