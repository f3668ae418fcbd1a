//! The agent: what this library does, for any language and any shell, over HTTP; and the dashboard.
//!
//! `docs/agent.md` says what can be asked. `pointsman serve` and `pointsman dev` run agents; a program of its own can hold one too:
//!
//! ```
//! use pointsman::Registry;
//! use pointsman::agent::{Agent, Settings};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::connect("memory://example").await?;
//! // With port 0 the system chooses.
//! let agent = Agent::start(&registry, Settings::new("127.0.0.1:0".parse()?)).await?;
//! println!("dashboard at http://{}/", agent.address());
//! agent.close().await;
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```

use std::net::SocketAddr;

pub use pointsman_agent::{Error, Limits, Settings, Tls, Token};

use crate::Registry;

/// A running agent of a registry. It serves until it is closed, or dropped; then its connections end.
#[derive(Debug)]
pub struct Agent(pointsman_agent::Agent);

impl Agent {
    /// Starts an agent of this registry. Returns once it listens and has a first view of the registry. Cancelled, nothing stays.
    ///
    /// # Errors
    ///
    /// As [`pointsman_agent::Agent::start`].
    pub async fn start(registry: &Registry, settings: Settings) -> Result<Self, Error> {
        let registry: &pointsman_registry::Registry = registry;
        pointsman_agent::Agent::start(registry.clone(), settings).await.map(Self)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Takes over tokens, names, and certificates, and reads the certificates' files again. What is returned are the names of
    /// settings that are different and need a restart.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`], [`Error::File`]: then everything stays as it was.
    pub fn reload(&mut self, settings: Settings) -> Result<Vec<&'static str>, Error> {
        self.0.reload(settings)
    }

    /// Says what else is to stand under `/metrics`: text as Prometheus reads it, without `# EOF`.
    pub fn add_metrics<F>(&self, more: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = String> + Send + 'static,
    {
        self.0.add_metrics(more);
    }

    /// Everything that it counts itself, as Prometheus reads it, without `# EOF`.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.0.metrics()
    }

    /// Ends: no connection is accepted any more, streams end with a word, and what is registered through it is left to the
    /// registry, where it lasts a while (not over `memory://`), so that clients take it over through another agent without a gap.
    ///
    /// What is returned is how many registrations are left so. If there are any, end the process without closing the registry
    /// ([`Registry::abandon`]): closing it would deregister them.
    pub async fn close(self) -> usize {
        self.0.close().await
    }
}
