//! What the steps of the tour play on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use pointsman::agent::{Agent, Settings};
use pointsman::{
    Algorithm, Balancer, Instance, ObservedInstance, Registration, Registry, Service, Snapshot, Term, TermGuard,
};

use crate::args::Output;
use crate::dev::picture::bar;
use crate::dev::tour::api::Api;
use crate::dev::tour::proxy_steps::Proxied;
use crate::dev::tour::{DEADLINE, Mismatch};
use crate::failure::Failure;
use crate::output;

/// The service of the tour.
pub(super) const SERVICE: &str = "testserver";
/// So many picks a distribution is made of.
pub(super) const PICKS: u32 = 20;

/// The registry, what is registered, and what the steps hand on to one another.
pub(super) struct Stage {
    pub(super) registry: Registry,
    pub(super) service: Service,
    pub(super) members: BTreeMap<String, Registration>,
    /// Stands before whatever the master writes.
    pub(super) store: TermGuard,
    /// The term under which a dead master would still write.
    pub(super) zombie: Option<Term>,
    /// How to ask the agent.
    pub(super) api: Api,
    /// What the steps through the proxy play on, from the first of them to the last.
    pub(super) proxied: Option<Proxied>,
    agent: Agent,
    output: Output,
    said: Vec<String>,
}

impl Stage {
    /// An empty one.
    pub(super) async fn set(registry: &Registry, output: Output) -> Result<Self, Failure> {
        let service = registry.discover(SERVICE).await?;
        let agent = Agent::start(registry, Settings::new(([127, 0, 0, 1], 0).into())).await;
        let agent = agent.map_err(|error| Failure::new(format!("start the agent: {error}")))?;
        let (registry, api, store) = (registry.clone(), Api { address: agent.address() }, TermGuard::new());
        let (members, said) = (BTreeMap::new(), Vec::new());
        Ok(Self { registry, service, members, store, zombie: None, api, proxied: None, agent, output, said })
    }

    /// After the last step.
    pub(super) async fn clear(self) {
        self.agent.close().await;
    }

    /// Tells the reader something.
    pub(super) fn say(&mut self, text: impl Into<String>) {
        let text = text.into();
        if self.output == Output::Table {
            // A reader that went away does not stop the checks.
            let _: io::Result<()> = output::line(&format!("   {text}"));
        }
        self.said.push(text);
    }

    /// What was said since the last time.
    pub(super) fn take_said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.said)
    }

    /// Registers an instance and keeps it.
    pub(super) async fn register(&mut self, code: &str, port: u16, weight: u32) -> Result<(), Mismatch> {
        let instance = Instance::new(SERVICE).code(code).address(format!("127.0.0.1:{port}")).weight(weight);
        let registration = self.registry.register(instance).await;
        let registration =
            registration.map_err(|error| Mismatch::new(format!("{code} to register"), error.to_string()))?;
        self.members.insert(code.to_owned(), registration);
        Ok(())
    }

    /// Waits until the service is as it should be.
    pub(super) async fn expect(
        &self,
        expected: &str,
        condition: impl FnMut(&Snapshot) -> bool,
    ) -> Result<Arc<Snapshot>, Mismatch> {
        let waiting = self.service.wait_for(condition);
        match tokio::time::timeout(DEADLINE, waiting).await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            _ => Err(Mismatch::new(expected, describe(&self.service.snapshot()))),
        }
    }

    /// The instance that is master now.
    pub(super) fn master(&self) -> Result<Arc<ObservedInstance>, Mismatch> {
        self.service.master().map_err(|error| Mismatch::new("a master", error.to_string()))
    }

    /// Twenty picks, by a balancer of their own; all are held, as if the calls were under way at once.
    pub(super) fn picks(&self, algorithm: Algorithm) -> Result<Distribution, Mismatch> {
        // With a seed, so that chance is the same on every tour.
        let balancer = Balancer::builder(self.service.view()).algorithm(algorithm).seed(20).build();
        let mut claims = Vec::new();
        let mut counts = BTreeMap::new();
        for number in 0..PICKS {
            let key =
                if algorithm == Algorithm::IpHash { format!("10.0.0.{number}") } else { format!("/data/{number}") };
            let claim = balancer.pick(&key);
            let claim = claim.map_err(|error| Mismatch::new(format!("a pick by {algorithm}"), error.to_string()))?;
            *counts.entry(claim.code().to_string()).or_default() += 1;
            claims.push(claim);
        }
        Ok(Distribution(counts))
    }

    /// Shows where picks went.
    pub(super) fn show(&mut self, algorithm: Algorithm, distribution: &Distribution) {
        let mut text = format!("{:<22}", algorithm.name());
        for instance in self.service.snapshot().instances() {
            let count = distribution.of(&instance.code);
            // Writing to a string cannot fail.
            let _ = write!(text, "{} {count:>2} {:<11}", instance.code, bar(count.into(), PICKS.into(), 10));
        }
        self.say(text.trim_end());
    }
}

/// How many picks went to which code.
#[derive(Debug)]
pub(super) struct Distribution(BTreeMap<String, u32>);

impl Distribution {
    /// How many went to this one.
    pub(super) fn of(&self, code: &str) -> u32 {
        self.0.get(code).copied().unwrap_or(0)
    }

    /// Checks something about it.
    pub(super) fn expect(
        &self,
        algorithm: Algorithm,
        expected: &str,
        condition: impl FnOnce(&Self) -> bool,
    ) -> Result<(), Mismatch> {
        if condition(self) {
            Ok(())
        } else {
            Err(Mismatch::new(format!("{algorithm} to give {expected}"), self.in_words()))
        }
    }

    fn in_words(&self) -> String {
        let parts: Vec<_> = self.0.iter().map(|(code, count)| format!("{code} {count}")).collect();
        parts.join(", ")
    }
}

fn describe(snapshot: &Snapshot) -> String {
    let instances = snapshot.instances().iter();
    let parts: Vec<_> = instances.map(|i| format!("{} {} weight {}", i.code, i.role, i.weight)).collect();
    if parts.is_empty() { "no instances".to_owned() } else { parts.join(", ") }
}
