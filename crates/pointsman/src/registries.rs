//! Which registry the services of a route are found in.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_core::ServiceId;
use pointsman_registry::{Error, Result};

use crate::Registry;

/// The registries that a proxy or a relay uses: its own, others that its routes name, and the one that it registers in.
///
/// Made from one registry (`(&registry).into()`), that one is used for everything.
///
/// ```
/// use pointsman::{Registries, Registry};
///
/// # async fn example() -> Result<(), pointsman::Error> {
/// // Services live in one registry, balancers in another; one route has its service in a third.
/// let services = Registry::connect("memory://taobao-service").await?;
/// let balancers = Registry::connect("memory://micro-service").await?;
/// let archive = Registry::connect("memory://archive").await?;
/// let registries = Registries::from(&services).with("archive", &archive).register_in(&balancers);
/// # drop(registries);
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Registries {
    own: Registry,
    named: BTreeMap<Arc<str>, Registry>,
    register_in: Option<Registry>,
}

impl From<&Registry> for Registries {
    fn from(own: &Registry) -> Self {
        Self { own: own.clone(), named: BTreeMap::new(), register_in: None }
    }
}

impl Registries {
    /// Adds a registry for the routes that have this name as their `registry`. The name is shown in logs and metrics: it is to have no
    /// secret in it.
    #[must_use]
    pub fn with(mut self, name: impl Into<Arc<str>>, registry: &Registry) -> Self {
        self.named.insert(name.into(), registry.clone());
        self
    }

    /// Sets the registry in which the proxy or the relay itself registers. Default: its own.
    #[must_use]
    pub fn register_in(mut self, registry: &Registry) -> Self {
        self.register_in = Some(registry.clone());
        self
    }

    /// The registry in which whoever uses these registers.
    pub(crate) fn for_registration(&self) -> &Registry {
        self.register_in.as_ref().unwrap_or(&self.own)
    }

    /// The name for services that are to be found where whoever uses these registers.
    #[cfg(feature = "mqtt")]
    pub(crate) fn beside(&self, name: &str) -> ServiceId {
        let is_elsewhere = !self.for_registration().is_same(&self.own);
        ServiceId::new(is_elsewhere.then(|| REGISTER_IN.into()), name)
    }

    /// The registry in which a service is found.
    pub(crate) fn of(&self, service: &ServiceId) -> Result<&Registry> {
        match &service.registry {
            None => Ok(&self.own),
            Some(name) if **name == *REGISTER_IN => Ok(self.for_registration()),
            Some(name) => self.named.get(name).ok_or_else(|| Error::Url {
                url: name.to_string(),
                reason: format!(
                    "is not among the registries that were given, but service {} is to be found there",
                    service.name
                ),
            }),
        }
    }
}

/// No registry is named so: names are URLs, or words of a program.
const REGISTER_IN: &str = "(register_in)";
