//! One session with the ensemble at a time, for as long as it takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pointsman_net::backoff::Backoff;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zookeeper_client::{Client, Connector, SessionId, SessionInfo, SessionState};

use super::batch::Batches;
use super::explain::explain;
use super::fault::{Fault, within};
use super::heartbeat::{Confirmed, heartbeat};
use super::layout::Layout;
use super::reads::Reads;
use crate::Result;
use crate::lease::Lease;
use crate::url::{Folders, ZooKeeperUrl};
use crate::wait::{Obstacle, Outlook};

/// Keeps a session alive: connects, sends heartbeats, and when a session is lost makes the next one. Never gives up.
pub(super) struct Sessions {
    settings: Arc<ZooKeeperUrl>,
    links: Links,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// How things stand with the ensemble.
#[derive(Debug, Clone)]
pub(super) enum Link {
    /// No connection, and why.
    Down(Obstacle),
    /// Connected.
    Up(Session),
    /// Closed by us, for good.
    Closed,
}

/// How things stand, for those who write and for those who only read.
#[derive(Clone)]
pub(super) struct Links {
    writable: watch::Sender<Link>,
    /// The same, and in addition [`Link::Up`] with a server that has no quorum and can be read.
    readable: watch::Sender<Link>,
    /// Whether leases are renewed: not where nobody ever holds a role by them.
    has_leases: watch::Sender<bool>,
}

impl Links {
    fn new() -> Self {
        let connecting = || watch::Sender::new(Link::Down(Obstacle::untried()));
        Self { writable: connecting(), readable: connecting(), has_leases: watch::Sender::new(true) }
    }

    /// Returns once the lease is to be renewed.
    pub(super) async fn has_leases(&self) {
        // The sender lives in `self`: no error.
        let _ = self.has_leases.subscribe().wait_for(|has| *has).await;
    }

    fn send(&self, link: &Link) {
        self.writable.send_replace(link.clone());
        self.readable.send_replace(link.clone());
    }

    /// Connected.
    pub(super) fn up(&self, session: &Session) {
        self.send(&Link::Up(session.clone()));
    }

    fn down(&self, obstacle: Obstacle) {
        self.send(&Link::Down(obstacle));
    }

    /// There is a server without a quorum, which can be read, but not be written to.
    fn read_only(&self, session: Session) {
        let reason = "only a server without a quorum answers: it can be read, not written to";
        self.writable.send_replace(Link::Down(Obstacle::new(Outlook::MayPass, reason)));
        self.readable.send_replace(Link::Up(session));
    }

    /// Whether anybody would read from a server without a quorum.
    fn has_readers(&self) -> bool {
        self.readable.receiver_count() > 0
    }
}

/// A connection within a session. Each reconnection of the same session is another `epoch`, with a lease of its own.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) epoch: u64,
    /// The server has no quorum: what it says may be out of date.
    pub(super) is_read_only: bool,
    pub(super) lease: Lease,
    /// What the folders of services are.
    pub(super) folders: Folders,
    pub(super) batches: Batches,
    pub(super) reads: Reads,
    /// How many creations are under way: they come first, before what is to be watched, also when hundreds register at
    /// once.
    creating: watch::Sender<usize>,
    /// Rounds of looking at everything: so many at a time.
    rounds: Arc<Semaphore>,
}

const ROUNDS: usize = 4;

impl Session {
    pub(super) fn id(&self) -> i64 {
        self.client.session_id().0
    }

    /// The negotiated session timeout, which is also the longest that one operation may take.
    pub(super) fn timeout(&self) -> Duration {
        self.client.session_timeout()
    }

    fn new(client: &Client, settings: &ZooKeeperUrl) -> Self {
        static NEXT_EPOCH: AtomicU64 = AtomicU64::new(1);
        let epoch = NEXT_EPOCH.fetch_add(1, Ordering::Relaxed);
        let (lease, layout) = (Lease::new(), Layout::new(&settings.prefix, &settings.root));
        let is_read_only = client.state() == SessionState::ConnectedReadOnly;
        Session {
            client: client.clone(),
            epoch,
            is_read_only,
            batches: Batches::start(client, &lease),
            reads: Reads::start(client, &layout, is_read_only),
            lease,
            folders: settings.folders,
            creating: watch::Sender::new(0),
            rounds: Arc::new(Semaphore::new(ROUNDS)),
        }
    }

    /// Lets rounds wait for as long as the guard is held.
    pub(super) fn creating(&self) -> Creating<'_> {
        self.creating.send_if_modified(|creating| {
            *creating += 1;
            false
        });
        Creating(self)
    }

    /// Waits for its turn to look at everything. Who has just been created lets other creations go first, for a while.
    pub(super) async fn round(&self, just_created: bool) -> Option<SemaphorePermit<'_>> {
        // The turn first: otherwise one moment without a creation would let everybody through who waits.
        let turn = self.rounds.acquire().await.ok();
        if just_created {
            let mut creating = self.creating.subscribe();
            let _ = tokio::time::timeout(self.timeout() / 64, creating.wait_for(|creating| *creating == 0)).await;
        }
        turn
    }

    /// Carries out one operation in time.
    pub(super) async fn run<T>(
        &self,
        step: impl FnOnce() -> String,
        operation: impl Future<Output = Result<T, impl Into<zookeeper_client::Error>>>,
    ) -> Result<T, Fault> {
        within(self.timeout(), step, operation).await
    }
}

/// See [`Session::creating`].
pub(super) struct Creating<'a>(&'a Session);

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        // Wakes those who wait for zero only when there is zero.
        self.0.creating.send_if_modified(|creating| {
            *creating -= 1;
            *creating == 0
        });
    }
}

impl Sessions {
    /// Starts connecting.
    pub(super) fn start(settings: Arc<ZooKeeperUrl>) -> Result<Self> {
        let sessions = Self { settings, links: Links::new(), stop: watch::Sender::new(false), task: Mutex::new(None) };
        let task = sessions.spawn()?;
        sessions.task().replace(task);
        Ok(sessions)
    }

    /// Renews no leases: only for directories. Each renewal goes through the leader, and each wakes this process.
    pub(super) fn without_leases(&self) {
        self.links.has_leases.send_replace(false);
    }

    fn spawn(&self) -> Result<JoinHandle<()>> {
        let connector = connector(&self.settings)?;
        Ok(tokio::spawn(run(self.settings.clone(), connector, self.links.clone(), self.stop.subscribe())))
    }

    /// Goes on in the caller's runtime, if that has ended in which it was. The session of that one is given up: what was registered in it,
    /// by tasks that have ended as well, is gone when it expires.
    pub(super) fn revive(&self) -> Result<()> {
        let mut task = self.task();
        let has_ended = task.as_ref().is_some_and(JoinHandle::is_finished);
        if has_ended && !*self.stop.borrow() {
            self.links.down(Obstacle::untried());
            *task = Some(self.spawn()?);
        }
        Ok(())
    }

    fn task(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.links.writable.subscribe()
    }

    /// As [`Sessions::link`], for whoever only reads: from a server without a quorum, where there is no other.
    pub(super) fn readable(&self) -> watch::Receiver<Link> {
        self.links.readable.subscribe()
    }

    /// Waits until connected. `Err` says why that will not be.
    pub(super) async fn up(&self) -> Result<Session, String> {
        up(&mut self.link()).await.ok_or_else(|| "the registry is closed".to_owned())
    }

    /// Why there is no connection.
    pub(super) fn trouble(&self) -> String {
        match &*self.links.writable.borrow() {
            Link::Down(obstacle) => obstacle.to_string(),
            Link::Up(_) => "connected".to_owned(),
            Link::Closed => "closed".to_owned(),
        }
    }

    /// Closes the session, and returns when the server has confirmed it, or cannot be reached.
    pub(super) async fn close(&self) {
        self.stop.send_replace(true);
        let task = self.task().take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

/// Waits until connected; `None` when closed.
pub(super) async fn up(link: &mut watch::Receiver<Link>) -> Option<Session> {
    let state = link.wait_for(|link| !matches!(link, Link::Down(_))).await.ok()?;
    match &*state {
        Link::Up(session) => Some(session.clone()),
        Link::Down(_) | Link::Closed => None,
    }
}

/// Returns when `session` is no longer the current connection.
pub(super) async fn left(link: &mut watch::Receiver<Link>, session: &Session) {
    let _ = link.wait_for(|link| !matches!(link, Link::Up(current) if current.epoch == session.epoch)).await;
}

fn connector(settings: &ZooKeeperUrl) -> Result<Connector> {
    // One pass over all servers at a time: the waiting in between, and the reasons, are ours.
    let mut connector = Client::connector().with_session_timeout(settings.session_timeout).with_fail_eagerly();
    if let Some(digest) = &settings.digest {
        connector = connector.with_auth("digest", digest.as_bytes());
    }
    #[cfg(feature = "tls")]
    if let Some(tls) = &settings.tls {
        connector = connector.with_tls(super::tls::options(settings, tls)?);
    }
    Ok(connector)
}

async fn run(settings: Arc<ZooKeeperUrl>, connector: Connector, links: Links, mut stop: watch::Receiver<bool>) {
    let mut reading: Option<Client> = None;
    // A server that comes back gives the old session one more timeout: to be there in time keeps role and term.
    let longest = LONGEST_DELAY.min(settings.session_timeout / 4);
    let mut backoff = Backoff::new(FIRST_DELAY, longest).with_jitter(0.0..1.0);
    // Kept after the client has given a session up: the server may still have it, and with it what we registered.
    let mut last: Option<SessionInfo> = None;
    loop {
        let started = Instant::now();
        let client = tokio::select! {
            client = connect(&settings, connector.clone(), last.clone()) => client,
            () = stopped(&mut stop) => break,
        };
        match client {
            Ok(client) => {
                backoff.reset();
                last = Some(client.session().clone());
                tokio::select! {
                    () = serve(&settings, &client, started, &links, &mut reading) => {}
                    () = stopped(&mut stop) => {
                        close(client, &links).await;
                        return;
                    }
                }
            }
            Err(zookeeper_client::Error::SessionExpired) if last.is_some() => {
                tracing::warn!("session expired: a new one follows");
                last = None;
                continue;
            }
            Err(error) => {
                let obstacle = tokio::select! {
                    obstacle = explain(&settings, &error) => obstacle,
                    () = stopped(&mut stop) => break,
                };
                let reason = obstacle.reason.clone();
                tracing::debug!(%reason, "not connected");
                reading = reading.filter(|client| client.state() == SessionState::ConnectedReadOnly);
                if reading.is_none() {
                    links.down(obstacle);
                    tokio::select! {
                        client = connect_to_read(&settings, &connector, &links) => reading = client,
                        () = stopped(&mut stop) => break,
                    }
                    if let Some(client) = &reading {
                        tracing::warn!(%reason, "reading from a server without a quorum: what it says may be out of date");
                        links.read_only(Session::new(client, &settings));
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.delay()) => {}
            () = stopped(&mut stop) => break,
        }
    }
    links.send(&Link::Closed);
}

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(3);

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A dropped sender is a dropped registry: the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connect(
    settings: &ZooKeeperUrl,
    mut connector: Connector,
    last: Option<SessionInfo>,
) -> Result<Client, zookeeper_client::Error> {
    if let Some(session) = last {
        connector = connector.with_session(session);
    }
    let servers = settings.servers.join(",");
    let connecting = async {
        #[cfg(feature = "tls")]
        if settings.tls.is_some() {
            return connector.secure_connect(&servers).await;
        }
        connector.connect(&servers).await
    };
    match tokio::time::timeout(settings.session_timeout, connecting).await {
        Ok(client) => client,
        Err(_) => Err(zookeeper_client::Error::Timeout),
    }
}

/// Connects to a server that has no quorum, for whoever only reads: one in read-only mode (`readonlymode.enabled`) serves what it knew
/// last. `None` if nobody would read, or there is none.
async fn connect_to_read(settings: &ZooKeeperUrl, connector: &Connector, links: &Links) -> Option<Client> {
    if !links.has_readers() {
        return None;
    }
    let connecting = connect(settings, connector.clone().with_readonly(true), None);
    let client = tokio::time::timeout(READ_ONLY_LIMIT, connecting).await.ok()?.ok()?;
    // Otherwise there is a quorum by now: the next attempt finds it.
    (client.state() == SessionState::ConnectedReadOnly).then_some(client)
}

/// Timeout for connecting to a server without a quorum: the others are tried again after it.
const READ_ONLY_LIMIT: Duration = Duration::from_secs(1);

/// Serves one client, whose connecting began at `started`, until its session ends.
async fn serve(
    settings: &ZooKeeperUrl,
    client: &Client,
    started: Instant,
    links: &Links,
    reading: &mut Option<Client>,
) {
    let mut confirmed = Confirmed::new(started);
    let mut states = client.state_watcher();
    let mut state = client.state();
    let id = SessionId(client.session_id().0);
    loop {
        match state {
            SessionState::SyncConnected => {
                let session = Session::new(client, settings);
                tokio::select! {
                    next = states.changed() => state = next,
                    never = heartbeat(&session, &mut confirmed, links) => match never {},
                }
                // First of all: nobody holds a role by this connection any more.
                session.lease.end();
                *reading = None;
                links.down(Obstacle::new(Outlook::MayPass, "connection lost"));
                tracing::info!(session = %id, %state, "disconnected");
            }
            state if state.is_terminated() => {
                tracing::warn!(session = %id, %state, "session given up");
                return;
            }
            _ => state = states.changed().await,
        }
    }
}

/// Drops the last handles on the client and waits for the server's confirmation.
async fn close(client: Client, links: &Links) {
    let mut states = client.state_watcher();
    // Registrations and directories drop theirs when they see this.
    links.send(&Link::Closed);
    drop(client);
    let closed = async { while !states.changed().await.is_terminated() {} };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
}

const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
