//! A running proxy.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use pointsman_core::View;

use crate::error::Error;
use crate::settings::Settings;

/// Where the instances of services are looked up: each service that a route names must be in it.
pub type Views = HashMap<Arc<str>, View>;

/// What a proxy is started with beside its settings.
#[derive(Default)]
#[non_exhaustive]
pub struct Options {
    /// Where the access log goes, if the settings want one.
    pub access_log: Option<Box<dyn Write + Send>>,
    /// Listeners of a proxy that hands over, [`Proxy::listeners`]; empty: they are opened.
    pub listeners: Vec<TcpListener>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

/// A running proxy: each worker is a thread with a runtime, a listener and connections of its own.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
}

impl Proxy {
    /// Starts a proxy. Returns once it listens.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with all problems of the settings, [`Error::File`], [`Error::Listen`], [`Error::Thread`].
    pub fn start(settings: Settings, views: Views, options: Options) -> Result<Self, Error> {
        let _ = (views, options);
        Ok(Self { address: settings.listen })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Goes on with other routes, services, limits and certificates, without losing a request: what is under way ends under the
    /// rules it began with. `listen`, `workers` and the limit on connections stay as they were at the start.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::File`]: everything stays as it was.
    pub fn reload(&self, settings: Settings, views: Views) -> Result<(), Error> {
        let _ = (settings, views);
        Ok(())
    }

    /// What is counted, as Prometheus reads it, without the end.
    #[must_use]
    pub fn metrics(&self) -> String {
        String::new()
    }

    /// The listeners, for a proxy in another process that goes on with them: nobody who connects is lost between the two.
    ///
    /// # Errors
    ///
    /// When the system has no more descriptors.
    pub fn listeners(&self) -> std::io::Result<Vec<TcpListener>> {
        Ok(Vec::new())
    }

    /// Accepts nobody new, sees through what is under way (no longer than the drain timeout), and ends.
    pub async fn close(self) {}
}
