//! What all tasks of a broker share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::Options;
use super::core::Core;
use super::link::{Link, Origin};
use super::login::Logins;
use super::slots::Key;
use tokio_rustls::rustls::ServerConfig;

/// The core behind its lock, and the tasks around it.
#[derive(Debug)]
pub(super) struct Broking {
    /// A std mutex: it is held for the packets of one chunk, never across an await.
    core: Mutex<Core>,
    runtime: Runtime,
    tasks: Mutex<Tasks>,
    clock: Clock,
    /// Whether clients from outside this process are let in.
    open: watch::Sender<bool>,
    pub(super) connect_timeout: Duration,
    max_connections: usize,
    pub(super) logins: Logins,
    tls: Mutex<Option<Arc<ServerConfig>>>,
}

#[derive(Debug, Default)]
struct Tasks {
    set: JoinSet<()>,
    /// Whether the last connection was turned away.
    crowded: bool,
    closed: bool,
}

/// Wakes the task that does what is due.
#[derive(Debug, Default)]
struct Clock {
    changed: Notify,
    /// When it will wake by itself.
    due: Mutex<Option<std::time::Instant>>,
}

impl Broking {
    /// All its tasks will run on that runtime.
    pub(super) fn new(core: Core, runtime: Runtime, options: &Options, tls: Option<Arc<ServerConfig>>) -> Arc<Self> {
        Arc::new(Self {
            logins: Logins::new(options.users.clone()),
            tls: Mutex::new(tls),
            core: Mutex::new(core),
            runtime,
            tasks: Mutex::default(),
            clock: Clock::default(),
            open: watch::Sender::new(false),
            connect_timeout: options.connect_timeout,
            max_connections: options.max_connections,
        })
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        // A panic within the core would be a defect; those that are left are still better served than not.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self) {
        if !self.open.send_replace(true) {
            tracing::info!("MQTT broker lets clients in");
        }
    }

    /// Returns when clients from outside this process are let in.
    pub(super) async fn opened(&self) {
        // Fails only without a sender, which is here.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// How new connections are secured, if they are.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes on with other users, rules and certificates. Clients that would not be let in any more are disconnected.
    pub(super) fn reload(&self, options: &Options, tls: Option<Arc<ServerConfig>>) {
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = tls;
        self.logins.set_users(options.users.clone());
        let mut woken = Vec::new();
        {
            let mut core = self.core();
            core.set_access(options, Instant::now().into_std());
            core.take_woken(&mut woken);
            self.keep_time(&core);
        }
        woken.into_iter().for_each(|wake| wake.wake());
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a connection by a task of its own. `prepare` makes the stream (a TLS handshake), and says which user
    /// the client's certificate names, within the connect timeout.
    /// Whether there was room for it.
    pub(super) fn serve<S>(
        self: &Arc<Self>,
        name: Arc<str>,
        local: bool,
        prepare: impl Future<Output = std::io::Result<(S, Option<Arc<str>>)>> + Send + 'static,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut tasks = self.tasks();
        while tasks.set.try_join_next().is_some() {}
        if tasks.closed {
            return;
        }
        let crowded = !local && tasks.set.len() >= self.max_connections;
        if crowded != std::mem::replace(&mut tasks.crowded, crowded) {
            tracing::warn!(most = self.max_connections, crowded, "MQTT connections beyond the limit are turned away");
        }
        if crowded {
            return;
        }
        let broking = Arc::clone(self);
        let since = Instant::now();
        let task = async move {
            match timeout(broking.connect_timeout, prepare).await {
                Ok(Ok((stream, certificate))) => {
                    let origin = Origin { name, local, certificate, since };
                    Link::new(broking, origin, stream).run().await;
                }
                Ok(Err(error)) => tracing::warn!(peer = %name, %error, "MQTT connection refused"),
                Err(_) => tracing::warn!(peer = %name, "MQTT connection refused: no TLS handshake in time"),
            }
        };
        tasks.set.spawn_on(task, &self.runtime);
    }

    /// The end of a connection.
    pub(super) fn lost(&self, connection: Key, why: &str) {
        let mut woken = Vec::new();
        {
            let mut core = self.core();
            core.lost(connection, why, Instant::now().into_std());
            core.take_woken(&mut woken);
            self.keep_time(&core);
        }
        woken.into_iter().for_each(|wake| wake.wake());
    }

    /// Lets the clock know if something is due earlier than it thinks.
    pub(super) fn keep_time(&self, core: &Core) {
        let Some(next) = core.next_due(std::time::Instant::now()) else { return };
        let mut due = self.clock.due.lock().unwrap_or_else(PoisonError::into_inner);
        if due.is_none_or(|due| next < due) {
            *due = Some(next);
            self.clock.changed.notify_one();
        }
    }

    /// Does what is due, for ever.
    pub(super) async fn run_clock(self: Arc<Self>) {
        loop {
            let (now, mut woken) = (Instant::now().into_std(), Vec::new());
            let next = {
                let mut core = self.core();
                core.tick(now);
                core.take_woken(&mut woken);
                let next = core.next_due(now);
                *self.clock.due.lock().unwrap_or_else(PoisonError::into_inner) = next;
                next
            };
            woken.into_iter().for_each(|wake| wake.wake());
            let changed = self.clock.changed.notified();
            match next {
                None => changed.await,
                // Others have their turn, however much is left to be done.
                Some(next) if next <= now => tokio::task::yield_now().await,
                Some(next) => drop(tokio::time::timeout_at(next.into(), changed).await),
            }
        }
    }

    /// Says farewell to everybody and waits for what is still to be written, at most until then.
    pub(super) async fn shut_down(&self, until: Instant) {
        let mut set = {
            let mut tasks = self.tasks();
            tasks.closed = true;
            std::mem::take(&mut tasks.set)
        };
        let mut woken = Vec::new();
        {
            let mut core = self.core();
            core.shut_down(Instant::now().into_std());
            core.take_woken(&mut woken);
        }
        woken.into_iter().for_each(|wake| wake.wake());
        let all = async { while set.join_next().await.is_some() {} };
        tokio::select! {
            () = all => {}
            () = sleep_until(until) => {}
        }
        set.abort_all();
    }

    /// Ends all tasks, without a word.
    pub(super) fn stop(&self) {
        let mut tasks = self.tasks();
        tasks.closed = true;
        tasks.set.abort_all();
        drop(tasks);
        self.core().closed = true;
    }
}
