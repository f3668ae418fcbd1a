//! The registry with the balancer at hand: the two crates know nothing of one another.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pointsman_balance::{Algorithm, Balancer};
use pointsman_registry::{Guard, Result};

/// A registry: services register here, and are found. Cheap to clone.
///
/// Everything that [`pointsman_registry::Registry`] offers, and services that can be balanced over.
#[derive(Debug, Clone)]
pub struct Registry(pointsman_registry::Registry);

impl Registry {
    /// Connects; see [`pointsman_registry::Registry::connect`] for the URL.
    ///
    /// # Errors
    ///
    /// See there.
    pub async fn connect(url: &str) -> Result<Self> {
        pointsman_registry::Registry::connect(url).await.map(Self)
    }

    /// Settings that go beyond the URL.
    #[must_use]
    pub fn builder(url: &str) -> Builder {
        Builder(pointsman_registry::Registry::builder(url))
    }

    /// Follows one service; see [`pointsman_registry::Registry::discover`].
    ///
    /// # Errors
    ///
    /// See there.
    pub async fn discover(&self, service: &str) -> Result<Service> {
        self.0.discover(service).await.map(Service)
    }

    /// Follows several services; see [`pointsman_registry::Registry::discover_several`].
    ///
    /// # Errors
    ///
    /// See there.
    pub async fn discover_several(&self, services: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Result<Directory> {
        self.0.discover_several(services).await.map(Directory)
    }

    /// Follows several services without waiting for the registry; see [`pointsman_registry::Registry::follow_several`].
    ///
    /// # Errors
    ///
    /// See there.
    pub fn follow_several(&self, services: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Result<Directory> {
        self.0.follow_several(services).map(Directory)
    }

    /// Follows all services; see [`pointsman_registry::Registry::discover_all`].
    ///
    /// # Errors
    ///
    /// See there.
    pub async fn discover_all(&self) -> Result<Directory> {
        self.0.discover_all().await.map(Directory)
    }

    /// Leaves what was abandoned to its session's end; see [`pointsman_registry::Registry::abandon`].
    pub fn abandon(self) {
        self.0.abandon();
    }

    /// Closes all sessions; see [`pointsman_registry::Registry::close`].
    pub async fn close(self) {
        self.0.close().await;
    }
}

impl Deref for Registry {
    type Target = pointsman_registry::Registry;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Settings of a [`Registry`] before it is connected.
#[derive(Debug, Clone)]
pub struct Builder(pointsman_registry::Builder);

impl Builder {
    /// Goes on trying until the registry answers, instead of failing after the connect timeout; see
    /// [`pointsman_registry::Builder::wait`].
    #[must_use]
    pub fn wait(self, wait: bool) -> Self {
        Self(self.0.wait(wait))
    }

    /// How long to try. Default 5 s.
    #[must_use]
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        Self(self.0.connect_timeout(timeout))
    }

    /// Keeps snapshots in this folder; see [`pointsman_registry::Builder::snapshots`].
    #[must_use]
    pub fn snapshots(self, folder: impl Into<PathBuf>) -> Self {
        Self(self.0.snapshots(folder))
    }

    /// The guard against a mass loss; `None` turns it off.
    #[must_use]
    pub fn guard(self, guard: Option<Guard>) -> Self {
        Self(self.0.guard(guard))
    }

    /// Whether the URL can be used, as far as that can be told without connecting.
    ///
    /// # Errors
    ///
    /// See [`pointsman_registry::Builder::check`].
    pub fn check(&self) -> Result<()> {
        self.0.check()
    }

    /// The URL without its secrets.
    #[must_use]
    pub fn shown_url(&self) -> String {
        self.0.shown_url()
    }

    /// Goes on without waiting for the registry, which is connected to in the background; see
    /// [`pointsman_registry::Builder::connect_in_background`].
    ///
    /// # Errors
    ///
    /// See there.
    pub async fn connect_in_background(self) -> Result<Registry> {
        self.0.connect_in_background().await.map(Registry)
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// As [`Registry::connect`].
    pub async fn connect(self) -> Result<Registry> {
        self.0.connect().await.map(Registry)
    }
}

/// One service: its snapshots, its master, its changes, and balancers over its instances.
#[derive(Debug, Clone)]
pub struct Service(pointsman_registry::Service);

impl Service {
    /// A balancer over the instances of this service, as they change. It has figures and health of its own; balancers that
    /// are to share them are made with [`Balancer::builder`].
    #[must_use]
    pub fn balancer(&self, algorithm: Algorithm) -> Balancer {
        Balancer::new(self.view(), algorithm)
    }

    /// The directory that this service is of.
    #[must_use]
    pub fn directory(&self) -> Directory {
        Directory(self.0.directory().clone())
    }
}

/// Several services, or all: everything that [`pointsman_registry::Directory`] offers, and services that can be balanced over.
#[derive(Debug, Clone)]
pub struct Directory(pointsman_registry::Directory);

impl Directory {
    /// A handle on one service; see [`pointsman_registry::Directory::service`].
    #[must_use]
    pub fn service(&self, name: &str) -> Option<Service> {
        self.0.service(name).map(Service)
    }
}

impl Deref for Directory {
    type Target = pointsman_registry::Directory;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<pointsman_registry::Service> for Service {
    fn from(service: pointsman_registry::Service) -> Self {
        Self(service)
    }
}

impl Deref for Service {
    type Target = pointsman_registry::Service;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
