//! A guide of ten minutes: instance, role, term, snapshot, claim.
//!
//! Five words cover the crate. Each section explains one of them, with an example that runs.
//!
//! | word | meaning | type |
//! |---|---|---|
//! | instance | one running copy of a service | [`Instance`], kept registered by a [`Registration`] |
//! | role | what the instance is now: master, normal or detached | [`Role`] |
//! | term | the number of a mastership; a later one is always higher | [`Term`], checked by a [`TermGuard`] |
//! | snapshot | all instances of a service at one moment | [`Snapshot`], kept up to date by a [`Service`] |
//! | claim | an instance that was picked for a call | [`Claim`], made by a [`Balancer`] |
//!
//! The examples use `memory://`, a registry within the process. In production the URL names ZooKeeper
//! (`zookeeper://host1,host2,host3/micro-service`) or agents (`http://agent1:7480,agent2:7480`). The program stays the same.
//!
//! # Instance
//!
//! [`Registry::register`] returns once the instance is registered. The instance stays registered until the [`Registration`] is closed or
//! dropped, or until the process ends. The first instance of a service becomes its master.
//!
//! ```
//! use pointsman::{Instance, Registry, Role};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::connect("memory://guide-instance").await?;
//! let instance = Instance::new("jobs").address("10.0.0.1:80").weight(3).tag("zone", "eu-1");
//! let first = registry.register(instance).await?;
//! let second = registry.register(Instance::new("jobs").address("10.0.0.2:80")).await?;
//! assert!(first.role().is_master());
//! assert_eq!(second.role(), Role::Normal);
//!
//! // Address, weight and tags can be changed while the instance is registered.
//! second.update(|instance| instance.weight = 5).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Each instance has a code that is unique within its service. It is generated unless you set it with [`Instance::code`]. To register
//! an instance only while it passes a health check, or as one that is never master, use [`Registry::registration`].
//!
//! **When the registry is away**, the role is [`Role::Detached`], because another instance may become master. There is nothing to be done:
//! the registration reconnects by itself. If it is back before the session has expired, it has the same role and the same term. After that
//! the instance is registered anew. [`Registration::trouble`] says why an instance is not registered at the moment. This example
//! uses the feature `testing`, which has a registry whose connection can be cut:
//!
//! ```
//! # #[cfg(not(feature = "testing"))]
//! # fn main() {}
//! # #[cfg(feature = "testing")]
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use pointsman::testing::TestRegistry;
//! use pointsman::{Instance, Role};
//!
//! let test = TestRegistry::new();
//! let registration = test.registry().register(Instance::new("jobs")).await?;
//! let before = registration.role();
//! test.cut();
//! assert_eq!(registration.role(), Role::Detached);
//! test.mend();
//! assert_eq!(registration.roles().wait_for(Role::is_master).await, Some(before));
//! # Ok(())
//! # }
//! ```
//!
//! # Role and term
//!
//! Work that only one instance may do belongs in [`Registration::lead`]. It starts a run for each term of this instance, and drops
//! the run when the term ends. Over ZooKeeper and agents a role also has a local deadline ([`Registration::held_until`]): a process that
//! is cut off from the registry gives up its role before the registry can elect another master, and a process that was paused gives
//! it up as soon as it runs again.
//!
//! That alone is not enough. A process can be paused between the check of its role and the write that follows. When it goes on, another
//! instance may be master. So each write carries the term, and the store refuses a term that is lower than one that it has
//! seen. Within one process a [`TermGuard`] does that. Where several processes keep the store, [`Registry::check_term`] does.
//!
//! ```
//! use std::sync::Mutex;
//! use pointsman::{Instance, Registry, Role, StaleTerm, Term, TermGuard};
//!
//! #[derive(Default)]
//! struct Ledger {
//!     guard: TermGuard,
//!     lines: Mutex<Vec<String>>,
//! }
//!
//! impl Ledger {
//!     fn write(&self, term: Term, line: &str) -> Result<(), StaleTerm> {
//!         let mut lines = self.lines.lock().unwrap();
//!         self.guard.check(term)?; // under the lock, so that no other write comes in between
//!         lines.push(line.to_owned());
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let registry = Registry::connect("memory://guide-term").await?;
//! # let stopped = tokio::time::sleep(std::time::Duration::from_millis(10));
//! let ledger = Ledger::default();
//! let work = async |term| {
//!     ledger.write(term, "written by the master").expect("no later master has written");
//!     std::future::pending().await // more work
//! };
//! let registration = registry.register(Instance::new("jobs")).await?;
//! let first = registration.role().term().ok_or("not master")?;
//! tokio::select! {
//!     ended = registration.lead(work) => ended?,
//!     () = stopped => {} // a signal to this process
//! }
//!
//! // The mastership is given up. Without another instance this one is elected again, with a higher term.
//! registration.resign().await?;
//! let second = registration.roles().wait_for(Role::is_master).await.and_then(Role::term).ok_or("closed")?;
//! assert!(second > first);
//! ledger.write(second, "written by the next master")?;
//! assert!(ledger.write(first, "written too late").is_err());
//! # Ok(())
//! # }
//! ```
//!
//! # Snapshot
//!
//! [`Registry::discover`] follows one service, and returns once the first [`Snapshot`] is in. [`Registry::discover_all`] follows all
//! services. A snapshot never changes; [`Service::snapshot`] returns the newest one from memory and waits for nothing. [`Service::changes`] reports
//! what differs from one snapshot to the next.
//!
//! ```
//! use pointsman::{Change, Freshness, Instance, Registry};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let registry = Registry::connect("memory://guide-snapshot").await?;
//! let service = registry.discover("ress").await?; // no instance needs to be registered yet
//! let mut changes = service.changes();
//!
//! let registration = registry.register(Instance::new("ress").address("10.0.0.1:80")).await?;
//! let snapshot = service.wait_for(|snapshot| snapshot.master().is_some()).await?;
//! for instance in snapshot.instances() {
//!     println!("{} at {:?}: {}", instance.code, instance.address, instance.role);
//! }
//! assert_eq!(service.master()?.code, registration.instance().code);
//! assert_eq!(service.freshness(), Freshness::Fresh);
//! assert_eq!(changes.next().await, Some(Change::ServiceAppeared("ress".into())));
//! # Ok(())
//! # }
//! ```
//!
//! [`Service::freshness`] says how far the newest snapshot can be trusted:
//!
//! - [`Freshness::Fresh`]: it is what the registry holds.
//! - [`Freshness::Stale`]: the registry is away. The last snapshot stays in use, with its age. With the option `snapshots=FOLDER` in the
//!   URL, a process that starts while the registry is away begins with the snapshots on disk.
//! - [`Freshness::Guarded`]: the registry has lost many instances at once, and none of them has deregistered. That is more often a failure of the
//!   registry than of the instances, so the [`Guard`] keeps them in the snapshot for a while. Balancers prefer instances that are registered.
//!
//! # Claim
//!
//! A [`Balancer`] picks an instance from the newest snapshot. The [`Claim`] counts as a call in flight until it is dropped. Report the
//! outcome: an instance that fails five times in a row gets no calls for a while, as long as enough others remain. Balancers pick among
//! the normal instances, and the master only where no normal instance can serve; [`Candidates`] changes that.
//!
//! ```
//! use std::time::Duration;
//! use pointsman::{Algorithm, CallPolicy, Instance, Registry};
//!
//! async fn send(address: Option<&str>) -> std::io::Result<String> {
//!     // The call of your protocol.
//! #   Ok(format!("an answer of {address:?}"))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let registry = Registry::connect("memory://guide-claim").await?;
//! # let master = registry.register(Instance::new("ress").address("10.0.0.1:80")).await?;
//! # let normal = registry.register(Instance::new("ress").address("10.0.0.2:80")).await?;
//! let balancer = registry.discover("ress").await?.balancer(Algorithm::LeastConnections);
//! let claim = balancer.pick("/data/video")?; // only the hashes use the key
//! let reply = send(claim.address()).await;
//! claim.report(&reply);
//! drop(claim); // the call is over
//!
//! // The whole call at once: a deadline for each attempt, and other instances where one has failed.
//! let policy = CallPolicy::new().timeout(Duration::from_millis(500)).retries(2);
//! let reply = balancer.call(policy, async |instance| send(instance.address.as_deref()).await).await?;
//! assert!(reply.contains("10.0.0.2:80")); // the normal instance
//!
//! println!("{}", balancer.explain("/data/video")); // a table: why this instance, and why not the others
//! # Ok(())
//! # }
//! ```
//!
//! [`Balancer::call`] does not retry a call that may have reached an instance unless [`CallPolicy::retries`] says so. Set it only for calls that may be
//! carried out twice. For HTTP clients of tower and for gRPC clients of tonic there are ready-made layers (features `tower` and `tonic`).
//!
//! # Leaving
//!
//! [`Registration::drain`] sets the weight to 0, waits for the grace period, and then deregisters. Callers stop picking the instance, calls in
//! flight have time to end, and another instance becomes master where one can. Call it after the signal to stop, before the listener is
//! closed.
//! [`Registration::close`] deregisters at once. Other processes can tell an instance that has left from one that was lost, and only a lost one is
//! guarded.
//!
//! ```
//! use std::time::Duration;
//! use pointsman::{Instance, Registry};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let registry = Registry::connect("memory://guide-leaving").await?;
//! let registration = registry.register(Instance::new("ress").code("a").address("10.0.0.1:80")).await?;
//! let service = registry.discover("ress").await?;
//! registration.drain(Duration::from_secs(10)).await?; // the process goes on serving meanwhile
//! service.wait_for(|snapshot| snapshot.is_empty()).await?;
//! assert!(service.directory().has_left("ress", "a"));
//! # Ok(())
//! # }
//! ```
//!
//! An operator can drain an instance from outside with [`Registry::drain`]. That is stored apart from the registration, and stays when the
//! instance restarts.
//!
//! # Tests
//!
//! The module [`testing`](../testing/index.html) (feature `testing`) has a registry for your tests. Its connection can be cut and mended, its session can expire, and it
//! can lose its data. It needs no network, and with tokio's paused clock no time:
//!
//! ```
//! # #[cfg(not(feature = "testing"))]
//! # fn main() {}
//! # #[cfg(feature = "testing")]
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] // in your tests: #[tokio::test(start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use pointsman::testing::TestRegistry;
//! use pointsman::{Instance, Role};
//!
//! let test = TestRegistry::new();
//! let ours = test.registry().register(Instance::new("jobs")).await?; // the process under test
//! let theirs = test.elsewhere().register(Instance::new("jobs")).await?; // another process
//!
//! test.cut();
//! test.expire();
//! assert!(theirs.roles().wait_for(Role::is_master).await.is_some()); // takes over
//! assert_eq!(ours.role(), Role::Detached);
//!
//! test.mend();
//! assert!(ours.roles().wait_for(|role| role == Role::Normal).await.is_some()); // registered again
//! # Ok(())
//! # }
//! ```
//!
//! A test of balancing alone needs no registry: a [`ViewWriter`] publishes snapshots that the test makes, and [`Balancer::builder`] takes its view.
//!
//! # Further
//!
//! - [`Registry::connect`] lists the options of the URL.
//! - [`Error`] and [`Error::is_retryable`] say what can fail, and what may be tried again.
//! - The features `http`, `mqtt` and `agent` add the proxy, the relay and the agent, to be run within your program.

#[expect(unused_imports, reason = "the links above need them")]
use crate::{
    Balancer, CallPolicy, Candidates, Claim, Error, Freshness, Guard, Instance, Registration, Registry, Role, Service,
    Snapshot, Term, TermGuard, ViewWriter,
};
