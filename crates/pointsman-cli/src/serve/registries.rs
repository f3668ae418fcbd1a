//! The registries that the sections of a file use: one connection for each URL, shared by all who name it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use pointsman::Registry;
use pointsman_net::metrics::{Kind, MetricsText};
use tokio::time::{Instant, timeout_at};

use crate::config::{SectionRegistries, shown};
use crate::failure::{Failure, chain};
use crate::session;

/// How long a start waits for the other registries once the first has answered.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// How long a new configuration waits for registries that it names for the first time: one that is there answers within that.
const RELOAD_PATIENCE: Duration = Duration::from_millis(500);

/// Connected registries, by their URLs.
#[derive(Debug, Default)]
pub(super) struct Registries(BTreeMap<String, Registry>);

impl Registries {
    /// Connects. Waits until one of them answers, or can be started from its snapshots on disk, however long that takes; then for the others,
    /// but not for long: what needs those that are away, or that refuse this process, goes on without them.
    ///
    /// # Errors
    ///
    /// If all of them refuse this process.
    pub(super) async fn connect(urls: BTreeSet<String>) -> Result<Self, Failure> {
        let mut connected = Self::default();
        let connect = async |url: String| (session::connect_for_good(Some(&url)).await, url);
        let mut connecting: FuturesUnordered<_> = urls.iter().cloned().map(connect).collect();
        let (mut refusal, mut deadline) = (None, None);
        loop {
            let next = match deadline {
                None => connecting.next().await,
                Some(deadline) => timeout_at(deadline, connecting.next()).await.ok().flatten(),
            };
            let Some((registry, url)) = next else { break };
            match registry {
                Ok(registry) => {
                    connected.0.insert(url, registry);
                    deadline.get_or_insert_with(|| Instant::now() + START_PATIENCE);
                }
                Err(failure) => {
                    tracing::error!(registry = shown(&url), error = failure.message(), "the registry cannot be used");
                    refusal.get_or_insert(failure);
                }
            }
        }
        drop(connecting);
        if let (true, Some(failure)) = (connected.0.is_empty(), refusal) {
            return Err(failure);
        }
        for url in urls {
            if let Entry::Vacant(entry) = connected.0.entry(url) {
                let registry = in_background(entry.key()).await?;
                entry.insert(registry);
            }
        }
        Ok(connected)
    }

    /// Connects those that are not connected yet, and waits for none of them for long.
    ///
    /// # Errors
    ///
    /// If one cannot be used at all; then none of them stays.
    pub(super) async fn add(&mut self, urls: &BTreeSet<String>) -> Result<(), String> {
        let connect = async |url: &String| {
            let connecting = Registry::builder(url).wait(true).connect();
            let registry = match tokio::time::timeout(RELOAD_PATIENCE, connecting).await {
                Ok(connected) => connected.map_err(|error| chain(&error))?,
                Err(_) => in_background(url).await.map_err(|error| chain(&error))?,
            };
            Ok((url.clone(), registry))
        };
        let new = urls.iter().filter(|url| !self.0.contains_key(*url)).map(connect);
        let new = join_all(new).await.into_iter().collect::<Result<Vec<_>, String>>()?;
        self.0.extend(new);
        Ok(())
    }

    /// Closes all but these, without waiting for that.
    pub(super) fn keep_only(&mut self, urls: &BTreeSet<String>) {
        for (_, registry) in self.0.extract_if(.., |url, _| !urls.contains(url)) {
            tracing::info!(registry = registry.url(), "no longer used: closing it");
            tokio::spawn(session::close(registry));
        }
    }

    /// The one at a URL that the sections use.
    pub(super) fn at(&self, url: Option<&String>) -> Result<&Registry, Failure> {
        url.and_then(|url| self.0.get(url)).ok_or_else(session::no_registry)
    }

    /// Those of a section.
    pub(super) fn of(&self, section: &SectionRegistries) -> Result<pointsman::Registries, Failure> {
        let mut registries = pointsman::Registries::from(self.at(section.own.as_ref())?);
        if section.register_in.is_some() {
            registries = registries.register_in(self.at(section.register_in.as_ref())?);
        }
        for (name, url) in &section.named {
            registries = registries.with(name.clone(), self.at(Some(url))?);
        }
        Ok(registries)
    }

    /// Which of them have answered, as Prometheus reads it.
    pub(super) fn write_metrics(&self, text: &mut String) {
        let help = "Whether the registry has answered since this process uses it";
        let mut metrics = MetricsText::new(text, "pointsman");
        let mut family = metrics.family("registry_answered", Kind::Gauge, help);
        for registry in self.0.values() {
            family.sample([("registry", registry.url())], u8::from(registry.has_answered()));
        }
    }

    /// Closes all of them; but what the agent has registered for others in the one at this URL is left to its session's end.
    pub(super) async fn close(mut self, abandoned: Option<&String>) {
        if let Some(registry) = abandoned.and_then(|url| self.0.remove(url)) {
            registry.abandon();
        }
        join_all(self.0.into_values().map(session::close)).await;
    }
}

async fn in_background(url: &str) -> pointsman::Result<Registry> {
    let registry = Registry::builder(url).connect_in_background().await?;
    tracing::warn!(registry = shown(url), "the registry does not answer yet: going on without it");
    Ok(registry)
}
