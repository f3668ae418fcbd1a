//! HTTP: the proxy, which balances requests over instances. `docs/http.md` says what holds for its users.
//!
//! | who | uses |
//! |---|---|
//! | whoever runs the balancing | [`Proxy`]: listens, and is itself a service that clients find |
//! | a program whose own requests are to be balanced | [`Proxy::requests`]: a `tower::Service` |

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use pointsman_core::ServiceId;
use pointsman_http::Options;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::followed::{Followed, register_balancer};
use crate::{Instance, Registration, Registries};

pub use pointsman_http::{
    AccessLog, Action, Answer, Body, Check, Error as ProxyError, Forwarded, Invalid, Key, Limits, Network, Pass,
    Protocol, Requests, Route, RouteRole, Service, ServiceTls, Settings, Sticky, Timeouts, Tls, TlsError, TlsFile,
    When,
};

/// A running proxy: passes requests on to the instances of the service that a route says.
///
/// Dropped, it ends at once; [`Proxy::close`] sees through what is under way.
///
/// ```
/// use pointsman::proxy::{Proxy, Route, Settings};
/// use pointsman::{Instance, Registry};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::connect("memory://example").await?;
/// let mut settings = Settings::new();
/// settings.listen = "127.0.0.1:0".parse()?;
/// settings.routes.push(Route::new("^/picture", "ress"));
/// let proxy = Proxy::builder(&registry, settings).register_as("http-balancer").start().await?;
/// println!("http://{}/picture", proxy.address());
/// proxy.close().await;
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Debug)]
pub struct Proxy {
    proxy: pointsman_http::Proxy,
    followed: Mutex<Followed>,
    /// Registers; and what has come of it.
    registering: JoinSet<crate::Result<Registration>>,
    registration: Option<Registration>,
}

/// Sets up a [`Proxy`]; from [`Proxy::builder`].
#[must_use]
pub struct Builder {
    registries: Registries,
    settings: Settings,
    register_as: Option<String>,
    code: Option<Arc<str>>,
    advertise: Option<String>,
    register_after: Option<BoxFuture<'static, ()>>,
    options: Options,
}

impl Proxy {
    /// Sets up a proxy over the services of this registry; or of [several](Registries), where routes name others, or where the proxy itself
    /// registers in another.
    pub fn builder(registries: impl Into<Registries>, settings: Settings) -> Builder {
        Builder {
            registries: registries.into(),
            settings,
            register_as: None,
            code: None,
            advertise: None,
            register_after: None,
            options: Options::default(),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// Returns when the proxy is registered where it is to be. Cancellation loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`] when it cannot be registered: another has its code.
    pub async fn ready(&mut self) -> Result<(), Error> {
        if let Some(registered) = self.registering.join_next().await {
            self.registration = Some(registered.map_err(|_| Error::Closed)??);
        }
        Ok(())
    }

    /// Goes on with other routes, services, limits and certificates, without losing a request. Where it listens, the number of workers,
    /// and whether there is TLS stay as they were at the start.
    ///
    /// No registry is waited for: what is known of a service stays known, and one that routes name for the first time and that
    /// cannot be read within half a second is without instances (or has those on disk) until it can be read.
    ///
    /// # Errors
    ///
    /// [`Error::Proxy`] with everything that is wrong, [`Error::Registry`] when no service can have such a name, or the registry is
    /// closed; everything stays as it was then.
    pub async fn reload(&self, settings: &Settings) -> Result<(), Error> {
        let registries = self.followed.lock().await.registries().clone();
        self.reload_with(settings, registries).await
    }

    /// The same, with other registries for the services that its routes name. A service that stays in its registry keeps all that is known
    /// of it. Where the proxy itself is registered stays as it was at the start.
    ///
    /// # Errors
    ///
    /// As [`Proxy::reload`].
    pub async fn reload_with(&self, settings: &Settings, registries: impl Into<Registries>) -> Result<(), Error> {
        check(settings)?;
        let mut followed = self.followed.lock().await;
        let next = followed.next(registries.into(), services(settings)).await?;
        self.proxy.reload(settings.clone(), &next.views())?;
        *followed = next;
        Ok(())
    }

    /// The same routes and services for requests from within the program, as a `tower::Service`. Must be called within a tokio runtime,
    /// and used within the same.
    #[must_use]
    pub fn requests(&self) -> Requests {
        self.proxy.requests()
    }

    /// What is counted, in Prometheus' text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.proxy.metrics()
    }

    /// The listeners, for a proxy in another process that goes on with them: [`Builder::listeners`].
    ///
    /// # Errors
    ///
    /// When the system has no more descriptors.
    pub fn listeners(&self) -> std::io::Result<Vec<TcpListener>> {
        self.proxy.listeners()
    }

    /// Deregisters, if it is registered, and goes on serving: clients that look for it find others.
    pub async fn deregister(&mut self) {
        if let Some(Ok(Ok(registration))) = self.registering.try_join_next() {
            self.registration = Some(registration);
        }
        if let Some(registration) = self.registration.take()
            && let Err(error) = registration.close().await
        {
            tracing::warn!(%error, "the proxy's registration ends with its session");
        }
        self.registering.shutdown().await;
    }

    /// Leaves: deregisters, accepts nobody new, sees through what is under way (no longer than the drain timeout), and ends.
    pub async fn close(mut self) {
        self.deregister().await;
        self.proxy.close().await;
    }
}

impl Builder {
    /// Lets the proxy register as a service, so that clients find it.
    pub fn register_as(mut self, service: impl Into<String>) -> Self {
        self.register_as = Some(service.into());
        self
    }

    /// The code that it registers with. Default: generated.
    pub fn code(mut self, code: impl Into<Arc<str>>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// `host:port` where clients reach it. Default: where it listens.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// Lets it wait with its registration until this is done: until its predecessor has given up the same code.
    pub fn register_after(mut self, done: impl Future<Output = ()> + Send + 'static) -> Self {
        self.register_after = Some(Box::pin(done));
        self
    }

    /// Where the access log goes, if the settings want one.
    pub fn access_log(mut self, to: Box<dyn Write + Send>) -> Self {
        self.options.access_log = Some(to);
        self
    }

    /// Goes on with the listeners of a proxy that hands over ([`Proxy::listeners`]), instead of opening its own.
    pub fn listeners(mut self, listeners: Vec<TcpListener>) -> Self {
        self.options.listeners = listeners;
        self
    }

    /// Starts it. Returns once it listens and every service that a route names is followed; it then registers by itself. A registry
    /// that [has not answered yet](pointsman_registry::Registry::has_answered) is not waited for: then it starts with the snapshots on
    /// disk.
    ///
    /// # Errors
    ///
    /// [`Error::Proxy`] with everything that is wrong with the settings; [`Error::Registry`] when a service cannot be followed.
    pub async fn start(self) -> Result<Proxy, Error> {
        // Before anything is asked of the registry.
        check(&self.settings)?;
        let instance = self.register_as.as_deref().map(Instance::new);
        let instance = instance.map(|instance| match self.code {
            Some(code) => instance.code(code),
            None => instance,
        });
        instance.as_ref().map_or(Ok(()), Instance::check)?;
        let register_in = self.registries.for_registration().clone();
        let followed = Followed::start(self.registries, services(&self.settings)).await?;
        let proxy = pointsman_http::Proxy::start(self.settings, &followed.views(), self.options)?;
        let mut registering = JoinSet::new();
        if let Some(instance) = instance {
            let address = self.advertise.unwrap_or_else(|| proxy.address().to_string());
            let instance = instance.address(address);
            let register_after = self.register_after;
            registering.spawn(async move {
                if let Some(done) = register_after {
                    done.await;
                }
                register_balancer(&register_in, instance, "proxy").await
            });
        }
        Ok(Proxy { proxy, followed: Mutex::new(followed), registering, registration: None })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn check(settings: &Settings) -> Result<(), Error> {
    let problems = settings.problems();
    if problems.is_empty() { Ok(()) } else { Err(pointsman_http::Error::Invalid(problems).into()) }
}

/// The services of all routes.
fn services(settings: &Settings) -> BTreeSet<ServiceId> {
    let passing = settings.routes.iter().filter_map(|route| match &route.action {
        Action::Pass(pass) => Some(pass),
        _ => None,
    });
    passing.flat_map(|pass| pass.services()).collect()
}

/// Why a proxy cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry says no.
    #[error(transparent)]
    Registry(#[from] crate::Error),
    /// It cannot run as it is told to.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The code, or the name to register under, cannot be.
    #[error(transparent)]
    Instance(#[from] crate::InvalidInstance),
    /// It has ended.
    #[error("the proxy has ended")]
    Closed,
}
