//! Reads a configuration for `check` and `serve`, with the settings of the command line and of the environment.

use std::path::Path;

use super::credentials::{self, Tokens};
use super::{Checked, Config, Plan, leads_to, shown};
use crate::args::Global;

/// Inputs of a configuration beside the file.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    /// The settings of the command line.
    sets: &'a [String],
    /// The registry of the command line, or of the environment.
    registry: Option<&'a str>,
}

impl<'a> Surroundings<'a> {
    pub(crate) fn new(sets: &'a [String], global: &'a Global) -> Self {
        Self { sets, registry: global.registry.as_deref() }
    }

    /// Reads the file. What it hardly means to say of the registry does not matter where a flag beats it.
    pub(crate) fn check(&self, path: Option<&Path>, bytes: &[u8]) -> Checked {
        let mut checked = Checked::read(path, bytes, self.sets, &Tokens::from_environment());
        if self.registry.is_some() {
            checked.problems.retain(|problem| problem.is_error() || problem.key != "registry");
        }
        checked
    }

    /// Adds what beats the file, or stands beside it.
    pub(crate) fn complete(&self, config: Config) -> Result<Config, String> {
        let config = config.resolved(self.registry)?;
        if let Some(agent) = &config.agent
            && let Some(url) = config.registries().iter().find(|url| leads_to(url, agent.listen))
        {
            let url = shown(url);
            return Err(format!(
                "the registry {url} is this agent itself; leave it out, and unset POINTSMAN_REGISTRY, for an agent that keeps what is \
                 registered, or name another"
            ));
        }
        Ok(config.with_credentials(credentials::from_environment()?.as_ref()))
    }

    /// Plans the change from the configuration in force to a new one.
    pub(crate) fn plan(&self, old: &Config, new: &Config) -> Result<Plan, String> {
        Plan::new(old, new, &Tokens::from_environment(), |config| self.complete(config))
    }
}
