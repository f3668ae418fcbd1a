//! What a backend does, and the events that it sends to a directory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pointsman_core::{ObservedInstance, Problem, Term};
use tokio::sync::mpsc;

use crate::log::Log;
use crate::masters::{self, Mastership};
use crate::overrides::{ClearedOverrides, Identity, Override, OverrideChange, OverrideOf, Overrides};
use crate::peers::Part;
use crate::registration::{End, Task};
use crate::wait::Wait;
use crate::{Error, Result};

/// Time before the second attempt at whatever a registry does not answer.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Where registrations live. Behind the concrete [`Registry`](crate::Registry); chosen by the URL's scheme.
#[async_trait]
pub(crate) trait Backend: Send + Sync + 'static {
    /// Returns once the registry has answered, or says why it is waited for no longer.
    async fn connected(&self, wait: Wait<'_>) -> Result<()>;

    /// Keeps one instance registered, whatever happens, until the task's commands end. Never gives up.
    async fn keep(&self, task: Box<Task>) -> End;

    /// Sends what `scope` holds, and every change of it, until `events` is closed.
    async fn follow(&self, scope: Scope, events: mpsc::Sender<Event>);

    /// Changes what an operator has set for an instance.
    async fn set_override(&self, service: &str, code: &str, change: OverrideChange) -> Result<()>;

    /// Sets what an operator had set for an instance before the registry lost its data, unless something is set for it already.
    async fn restore_override(&self, service: &str, code: &str, set: Override) -> Result<()>;

    /// What operators have set, of one service or of all, in the order of services and codes.
    async fn overrides(&self, service: Option<&str>) -> Result<Vec<OverrideOf>>;

    /// Clears what is set for codes that are not registered, at most [`CLEARED_AT_ONCE`](crate::overrides::CLEARED_AT_ONCE) of them. What
    /// an operator sets meanwhile stays.
    async fn clear_gone(&self, service: Option<&str>) -> Result<ClearedOverrides>;

    /// Accepts a term, unless a higher one of the service has been granted, or accepted by anybody; returns the highest.
    async fn check_term(&self, service: &str, term: Term) -> Result<Term>;

    /// The number that is added to the registry's own to make terms.
    async fn term_base(&self) -> Result<Term>;

    /// Raises that number, unless it is as high; returns what counts then.
    async fn raise_term_base(&self, base: Term) -> Result<Term>;

    /// Lets a process ask others that share this registry, and be asked, until its questions end. What cannot be asked is dropped.
    async fn exchange(&self, part: Part);

    /// Adds an entry to a log, unless there is one under that key.
    async fn append(&self, log: &Log, key: &str, entry: &str) -> Result<()>;

    /// The newest entries of a log, in the order of their keys.
    async fn read_log(&self, log: &Log) -> Result<Vec<String>>;

    /// Who was master of a service, the newest first.
    async fn masters(&self, service: &str) -> Result<Vec<Mastership>> {
        Ok(masters::history(&self.read_log(&Log::Masters(service.into())).await?, Vec::new()))
    }

    /// Lets a registration of another process hand its mastership over.
    async fn resign(&self, service: &str, code: &str) -> Result<()> {
        Err(only_by_agents(format!("resign {service}/{code}")))
    }

    /// Ends a registration of another process.
    async fn deregister(&self, service: &str, code: &str) -> Result<()> {
        Err(only_by_agents(format!("deregister {service}/{code}")))
    }

    /// Ends everything. What is still registered is gone afterwards.
    async fn close(&self);

    /// A name for this registry that is fit for a folder, the same in each process.
    fn label(&self) -> String;
}

fn only_by_agents(step: String) -> Error {
    let reason = "only an agent can, for a registration that it keeps; name it by its url, such as http://127.0.0.1:7480 (to take an instance out \
                  of service, drain it)";
    Error::refused(step, reason)
}

/// What a directory follows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// Every service.
    All,
    /// These services, whether they exist yet or not.
    Services(BTreeSet<Arc<str>>),
}

impl Scope {
    pub(crate) fn one(service: &str) -> Self {
        Scope::Services(BTreeSet::from([service.into()]))
    }

    /// The services, unless these are all.
    #[cfg(feature = "zookeeper")]
    pub(crate) fn services(&self) -> Option<&BTreeSet<Arc<str>>> {
        match self {
            Scope::All => None,
            Scope::Services(services) => Some(services),
        }
    }

    pub(crate) fn contains(&self, service: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Services(services) => services.contains(service),
        }
    }
}

/// What a backend tells a directory. A reset carries everything that the scope holds, so that nobody ever sees half a
/// list; then single services are put as they change.
#[derive(Debug)]
pub(crate) enum Event {
    /// The connection is lost: what is known may be out of date from now on.
    Stale,
    /// The registry answers, and lets nothing of the scope be read: why.
    Refused(Arc<str>),
    /// A service as another directory of the process knows it, before the registry has said anything.
    Known(ServiceState),
    /// All services of the scope that hold anything. Services that are not named hold nothing. Everything is fresh.
    Reset {
        states: Vec<ServiceState>,
        /// Which data the registry holds, where it can tell.
        identity: Option<Identity>,
    },
    /// One service, whole, as it is now.
    Put(ServiceState),
    /// Which data the registry holds, if it could not tell when everything was told. It is not other data for that.
    Identity(Identity),
}

/// One service as the registry holds it.
#[derive(Debug)]
pub(crate) struct ServiceState {
    pub(crate) service: Arc<str>,
    /// The registry's own revision of it: must not fall, or it was read from a server that lags behind.
    pub(crate) revision: u64,
    /// As they have registered: what operators have set is applied by whoever shows them.
    pub(crate) instances: Vec<Arc<ObservedInstance>>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) overrides: Overrides,
    /// The codes of which the backend knows that they left cleanly since it told the last state. What else is not there any more
    /// was lost.
    pub(crate) left: Vec<Arc<str>>,
}

impl ServiceState {
    /// A service that holds nothing.
    pub(crate) fn empty(service: impl Into<Arc<str>>) -> Self {
        Self {
            service: service.into(),
            revision: 0,
            instances: vec![],
            problems: vec![],
            overrides: Overrides::new(),
            left: vec![],
        }
    }
}
