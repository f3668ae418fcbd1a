//! A running proxy.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use pointsman_core::{ServiceId, View};
use pointsman_net::tls::{self, ServerTls};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Semaphore, oneshot};

use crate::access_log::Log;
use crate::error::Error;
use crate::health::Checker;
use crate::metrics::Metrics;
use crate::service::Requests;
use crate::settings::Settings;
use crate::table::Table;
use crate::worker::{self, Acceptor, Listening, Shared, Worker};

/// Where the instances of services are looked up: each service that a route names must be in it.
pub type Views = HashMap<ServiceId, View>;

/// How many connections the system keeps until they are accepted.
const BACKLOG: i32 = 4096;
/// How long the last lines of the access log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

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
///
/// Dropped, it ends at once, and with it what is under way; [`Proxy::close`] sees that through.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    listeners: Vec<TcpListener>,
    settings: Mutex<Settings>,
}

#[derive(Debug)]
struct Thread {
    worker: Arc<Worker>,
    handle: Option<JoinHandle<()>>,
    /// Dropped: the thread ends.
    stop: Option<oneshot::Sender<()>>,
}

impl Proxy {
    /// Starts a proxy. Returns once it listens.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with all problems of the settings, [`Error::Tls`], [`Error::Listen`], [`Error::Thread`].
    pub fn start(settings: Settings, views: &Views, options: Options) -> Result<Self, Error> {
        let workers = settings.workers;
        let shared = shared(&settings, views, workers + 1, options.access_log)?;
        let wanted = settings.listen;
        let fail = |source| Error::Listen { address: wanted, source };
        let listeners = match options.listeners {
            none if none.is_empty() => listen(settings.listen, workers).map_err(fail)?,
            handed_over => handed_over,
        };
        let address = listeners[0].local_addr().map_err(fail)?;
        let mut proxy = Self { address, shared, threads: Vec::new(), listeners, settings: Mutex::new(settings) };
        for number in 0..workers {
            // A proxy that hands over may have had more or fewer workers.
            let mut own = Vec::new();
            for listener in proxy.listeners.iter().skip(number).step_by(workers) {
                own.push(listener.try_clone().map_err(fail)?);
            }
            let shared_one = &proxy.listeners[number % proxy.listeners.len()];
            if own.is_empty() {
                own.push(shared_one.try_clone().map_err(fail)?);
            }
            proxy.threads.push(Thread::start(Worker::new(number, proxy.shared.clone()), own).map_err(Error::Thread)?);
        }
        tracing::info!(%address, workers, "proxy listens");
        Ok(proxy)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Goes on with other routes, services, limits and certificates, without losing a request: what is under way ends under the
    /// rules it began with. `listen`, `workers`, the limit on connections, and whether there is TLS stay as they were at the start.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::Tls`]: everything stays as it was.
    pub fn reload(&self, settings: Settings, views: &Views) -> Result<(), Error> {
        let mut current = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.reload(&settings, views, current.workers + 1)?;
        let (listen, workers, connections) = (current.listen, current.workers, current.limits.connections);
        *current = Settings { listen, workers, ..settings };
        current.limits.connections = connections;
        Ok(())
    }

    /// The same routes and services for requests from within the program. Must be called within a tokio runtime, and used within the same.
    #[must_use]
    pub fn requests(&self) -> Requests {
        Requests::of(Worker::new(self.threads.len(), self.shared.clone()))
    }

    /// What is counted, as Prometheus reads it, without the end.
    #[must_use]
    pub fn metrics(&self) -> String {
        let table = self.shared.table.load();
        let services: Vec<_> = table.services().map(|service| (service.id.clone(), service.metrics.clone())).collect();
        self.shared.metrics.text(&table.route_metrics(), &services, &table.instances())
    }

    /// The listeners, for a proxy in another process that goes on with them: nobody who connects is lost between the two.
    ///
    /// # Errors
    ///
    /// When the system has no more descriptors.
    pub fn listeners(&self) -> io::Result<Vec<TcpListener>> {
        self.listeners.iter().map(TcpListener::try_clone).collect()
    }

    /// Accepts nobody new, sees through what is under way (no longer than the drain timeout), and ends. If it is cancelled, it ends at
    /// once.
    pub async fn close(mut self) {
        let time = self.settings.lock().unwrap_or_else(PoisonError::into_inner).drain_timeout;
        self.listeners.clear();
        self.shared.is_leaving.store(true, Ordering::Release);
        for thread in &self.threads {
            thread.worker.leave();
        }
        let all = async {
            for thread in &self.threads {
                thread.worker.all_ended().await;
            }
        };
        if tokio::time::timeout(time, all).await.is_err() {
            let left: usize = self.threads.iter().map(|thread| thread.worker.open.load(Ordering::Relaxed)).sum();
            tracing::warn!(connections = left, "what is under way is cut off: the drain timeout is over");
        }
        self.stop();
    }

    fn stop(&mut self) {
        for thread in &mut self.threads {
            thread.stop = None;
        }
        for thread in &mut self.threads {
            // It has nothing to say but that it has panicked, which it has said itself.
            let _ = thread.handle.take().map(JoinHandle::join);
        }
        if let Some(log) = &self.shared.log {
            log.close(LAST_LINES);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Thread {
    fn start(worker: Arc<Worker>, listeners: Vec<TcpListener>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let own = worker.clone();
        let listeners: Vec<_> = listeners.into_iter().map(|one| (Listening::new(worker.clone()), one)).collect();
        let serve = move || {
            runtime.block_on(async {
                tokio::spawn(worker::sweep(own.clone()));
                for (listening, listener) in listeners {
                    match tokio::net::TcpListener::from_std(listener) {
                        Ok(listener) => drop(tokio::spawn(worker::accept(listening, listener))),
                        Err(error) => tracing::error!(%error, "a listener cannot be used"),
                    }
                }
                let _ = stopped.await;
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        };
        let handle = std::thread::Builder::new().name(format!("proxy-{}", worker.number)).spawn(serve)?;
        Ok(Self { worker, handle: Some(handle), stop: Some(stop) })
    }
}

/// A listener for each worker, at one address: the system spreads connections over them.
fn listen(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    // Whoever shares it among its own would share it with another process as well, and neither would know.
    drop(bind(address, false)?);
    let mut listeners = Vec::new();
    for _ in 0..workers {
        let socket = bind(address, workers > 1)?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        // Port 0 is some free one, and the same for all.
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// What `slots` workers share.
pub(crate) fn shared(
    settings: &Settings,
    views: &Views,
    slots: usize,
    access_log: Option<Box<dyn Write + Send>>,
) -> Result<Arc<Shared>, Error> {
    check(settings)?;
    let checker = Checker::default();
    let table = Table::new(settings, views, None, slots, &checker)?;
    table.activate();
    let acceptor = settings.tls.as_ref().map(acceptor).transpose()?;
    let metrics = Metrics::new(slots);
    let log = access_log.map(|to| Log::start(to, metrics.log_dropped.clone())).transpose().map_err(Error::Thread)?;
    Ok(Arc::new(Shared {
        table: ArcSwap::from_pointee(table),
        acceptor: ArcSwapOption::new(acceptor.map(Arc::new)),
        metrics,
        log,
        checker,
        places: Semaphore::new(settings.limits.connections),
        is_leaving: AtomicBool::new(false),
    }))
}

impl Shared {
    /// Goes on with other settings, or with none of them.
    pub(crate) fn reload(&self, settings: &Settings, views: &Views, slots: usize) -> Result<(), Error> {
        check(settings)?;
        let was = self.acceptor.load_full();
        // Also where it is of no use before a restart: what is wrong with it is told now.
        let acceptor = settings.tls.as_ref().map(acceptor).transpose()?;
        let acceptor = acceptor.filter(|_| was.is_some()).map(Arc::new).or(was);
        let table = Table::new(settings, views, Some(&self.table.load()), slots, &self.checker)?;
        self.acceptor.store(acceptor);
        let table = Arc::new(table);
        let before = self.table.swap(table.clone());
        before.retire(&table);
        table.activate();
        Ok(())
    }
}

/// Reads the files. To be called again when they have changed: connections made after that use what is new.
fn acceptor(tls: &ServerTls) -> Result<Acceptor, Error> {
    let config = tls.load(&[tls::HTTP_2, tls::HTTP_1_1]);
    let config = config.map_err(|source| Error::Tls { key: source.file.setting().to_owned(), source })?;
    Ok(Acceptor(config.into()))
}

fn check(settings: &Settings) -> Result<(), Error> {
    let problems = settings.problems();
    if problems.is_empty() { Ok(()) } else { Err(Error::Invalid(problems)) }
}
