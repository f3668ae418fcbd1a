//! A registry for the tests of those who use this library: in memory, with a connection that can be cut.
//!
//! ```
//! use pointsman_core::{Instance, Role};
//! use pointsman_registry::testing::TestRegistry;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> pointsman_registry::Result<()> {
//! let test = TestRegistry::new();
//! // The process under test, and another one.
//! let (ours, theirs) = (test.registry(), test.elsewhere());
//! let us = ours.register(Instance::new("jobs").code("us")).await?;
//! let them = theirs.register(Instance::new("jobs").code("them")).await?;
//! assert!(us.role().is_master());
//!
//! // The connection is lost: nobody knows who is master, and so we are not.
//! test.cut();
//! assert_eq!(us.role(), Role::Detached);
//! // The session expires: others see us go, and the next one is master.
//! test.expire();
//! them.roles().wait_for(Role::is_master).await;
//! // We come back, behind it.
//! test.mend();
//! us.roles().wait_for(|role| role == Role::Normal).await;
//! # Ok(())
//! # }
//! ```
//!
//! It keeps the contract of every registry, and needs neither a network nor a wait: whatever takes time takes that of tokio, so that a test with
//! `#[tokio::test(start_paused = true)]` (tokio's feature `test-util`) has hours pass in no time. For a service whose snapshots a test
//! writes by hand there is [`ViewWriter`](pointsman_core::ViewWriter), whose view a balancer takes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pointsman_core::Term;
use tokio::sync::mpsc;

use crate::backend::{Backend, Event, Scope};
use crate::log::Log;
use crate::memory::{Line, Memory};
use crate::overrides::{ClearedOverrides, Override, OverrideChange, OverrideOf};
use crate::peers::Part;
use crate::registration::{End, Task};
use crate::wait::Wait;
use crate::{Error, Registry, Result};

/// A registry of one test, and two connections to it, of which one can be cut. See the [module](self).
#[derive(Debug)]
pub struct TestRegistry {
    memory: Arc<Memory>,
    ours: Connected,
    theirs: Connected,
}

#[derive(Debug, Clone)]
struct Connected {
    line: Line,
    registry: Registry,
}

impl Connected {
    fn to(memory: &Arc<Memory>, name: &str) -> Self {
        let line = Line::new();
        let registry = Registry::over(Arc::new(Cuttable { memory: memory.clone(), line: line.clone() }), name);
        Self { line, registry }
    }
}

impl Default for TestRegistry {
    fn default() -> Self {
        Self::new()
    }
}

impl TestRegistry {
    /// An empty registry, which no other test sees.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::testing::TestRegistry;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (one, two) = (TestRegistry::new(), TestRegistry::new());
    /// let registration = one.registry().register(Instance::new("jobs")).await?;
    /// assert!(two.registry().discover("jobs").await?.snapshot().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new() -> Self {
        let memory = Memory::new("test");
        let (ours, theirs) = (Connected::to(&memory, "test://ours"), Connected::to(&memory, "test://theirs"));
        Self { memory, ours, theirs }
    }

    /// The registry as the process under test has it: what [`cut`](TestRegistry::cut) and [`expire`](TestRegistry::expire) are about.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::testing::TestRegistry;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let test = TestRegistry::new();
    /// let registration = test.registry().register(Instance::new("jobs")).await?;
    /// assert!(registration.role().is_master());
    /// assert!(test.registry().is_same(&test.registry())); // always the same connection
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.ours.registry.clone()
    }

    /// The same registry as another process has it. Its connection is never cut.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::testing::TestRegistry;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let test = TestRegistry::new();
    /// let theirs = test.elsewhere().register(Instance::new("jobs")).await?;
    /// test.cut();
    /// assert!(theirs.role().is_master()); // the other connection is not affected
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn elsewhere(&self) -> Registry {
        self.theirs.registry.clone()
    }

    /// The connection is lost. At once, roles are [`Detached`](pointsman_core::Role::Detached), directories are
    /// [stale](crate::Freshness::Stale), and requests wait for the connection, for the connect timeout. Others see nothing of it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::testing::TestRegistry;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let test = TestRegistry::new();
    /// let registration = test.registry().register(Instance::new("jobs")).await?;
    /// test.cut();
    /// assert_eq!(registration.role(), Role::Detached);
    /// // Other processes still see it as master, until its session expires.
    /// assert!(test.elsewhere().discover("jobs").await?.master().is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn cut(&self) {
        self.ours.line.cut();
    }

    /// The connection is back. What was registered before is registered still, with the same role and term, unless the session has
    /// [expired](TestRegistry::expire).
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::testing::TestRegistry;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let test = TestRegistry::new();
    /// let registration = test.registry().register(Instance::new("jobs")).await?;
    /// let before = registration.role();
    /// test.cut();
    /// test.mend();
    /// assert_eq!(registration.roles().wait_for(Role::is_master).await, Some(before)); // the same term
    /// # Ok(())
    /// # }
    /// ```
    pub fn mend(&self) {
        self.ours.line.mend();
    }

    /// The session expires: its instances are lost for others, and registered anew as soon as there is a connection.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::testing::TestRegistry;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let test = TestRegistry::new();
    /// let registration = test.registry().register(Instance::new("jobs")).await?;
    /// let before = registration.role();
    /// test.expire();
    /// let after = registration.roles().wait_for(|role| role.is_master() && role != before).await;
    /// assert!(after.and_then(Role::term) > before.term()); // registered anew, with a higher term
    /// # Ok(())
    /// # }
    /// ```
    pub fn expire(&self) {
        self.memory.lose(&self.ours.line);
        self.ours.line.reconnect();
    }

    /// The registry loses all its data, and begins anew: instances, and what operators have set. Whoever is connected registers again, and whoever
    /// follows it [guards](crate::Guard) what was there.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::testing::TestRegistry;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let test = TestRegistry::new();
    /// let registration = test.registry().register(Instance::new("jobs").code("a")).await?;
    /// test.registry().drain("jobs", "a").await?;
    /// test.empty();
    /// assert!(test.registry().overrides(None).await?.is_empty());
    /// assert!(registration.roles().wait_for(Role::is_master).await.is_some()); // registered again
    /// # Ok(())
    /// # }
    /// ```
    pub fn empty(&self) {
        self.memory.empty();
        self.ours.line.reconnect();
        self.theirs.line.reconnect();
    }
}

/// A registry in memory behind a line.
struct Cuttable {
    memory: Arc<Memory>,
    line: Line,
}

/// How long a request waits for the connection.
const PATIENCE: Duration = Duration::from_secs(5);

impl Cuttable {
    async fn reach(&self, step: impl FnOnce() -> String) -> Result<&Memory> {
        match tokio::time::timeout(PATIENCE, self.line.up()).await {
            Ok(_) => Ok(&self.memory),
            Err(_) => Err(Error::unavailable(step(), "the connection to the registry is cut")),
        }
    }
}

#[async_trait]
impl Backend for Cuttable {
    async fn connected(&self, _wait: Wait<'_>) -> Result<()> {
        Ok(())
    }

    async fn keep(&self, task: Box<Task>) -> End {
        self.memory.keep_over(Some(&self.line), task).await
    }

    async fn follow(&self, scope: Scope, events: mpsc::Sender<Event>) {
        while !events.is_closed() {
            let connection = tokio::select! {
                connection = self.line.up() => connection,
                () = events.closed() => return,
            };
            tokio::select! {
                biased;
                () = connection.ended() => {}
                () = self.memory.follow(scope.clone(), events.clone()) => return,
            }
            if events.send(Event::Stale).await.is_err() {
                return;
            }
        }
    }

    async fn set_override(&self, service: &str, code: &str, change: OverrideChange) -> Result<()> {
        let memory = self.reach(|| format!("set an override of {service}/{code}")).await?;
        memory.set_override(service, code, change).await
    }

    async fn restore_override(&self, service: &str, code: &str, set: Override) -> Result<()> {
        let memory = self.reach(|| format!("restore the override of {service}/{code}")).await?;
        memory.restore_override(service, code, set).await
    }

    async fn overrides(&self, service: Option<&str>) -> Result<Vec<OverrideOf>> {
        self.reach(|| "read the overrides".to_owned()).await?.overrides(service).await
    }

    async fn clear_gone(&self, service: Option<&str>) -> Result<ClearedOverrides> {
        self.reach(|| "clear overrides".to_owned()).await?.clear_gone(service).await
    }

    async fn check_term(&self, service: &str, term: Term) -> Result<Term> {
        self.reach(|| format!("check term {term} of {service}")).await?.check_term(service, term).await
    }

    async fn term_base(&self) -> Result<Term> {
        self.reach(|| "read the term base".to_owned()).await?.term_base().await
    }

    async fn raise_term_base(&self, base: Term) -> Result<Term> {
        self.reach(|| "raise the term base".to_owned()).await?.raise_term_base(base).await
    }

    async fn exchange(&self, part: Part) {
        self.memory.exchange(part).await;
    }

    async fn append(&self, log: &Log, key: &str, entry: &str) -> Result<()> {
        self.reach(|| format!("add to {log}")).await?.append(log, key, entry).await
    }

    async fn read_log(&self, log: &Log) -> Result<Vec<String>> {
        self.reach(|| format!("read {log}")).await?.read_log(log).await
    }

    async fn close(&self) {}

    fn label(&self) -> String {
        self.memory.label()
    }
}
