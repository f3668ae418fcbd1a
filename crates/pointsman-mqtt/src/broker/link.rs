//! The task of one connection: reads (`link/read.rs`), gives what it has read to the core, and writes what the core has for it.

mod read;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};

use super::connection::Status;
use super::core::Core;
use super::login::Login;
use super::memory::Charge;
use super::pressure::Gate;
use super::shared::Broking;
use super::slots::Key;
use super::wake::Wake;
use crate::packet::{Decoder, Malformed, Packet, Version};
use crate::reason::Reason;
use read::{LITTLE, LastReads, QUIET, TRICKLE};

/// What may wait to be written before no more is read, in bytes.
const UNWRITTEN: usize = 1 << 20;
/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// Buffers larger than that, in bytes, are not kept.
const SPARE: usize = 64 << 10;

/// A connection, from its first byte to its last.
pub(super) struct Link<S> {
    broking: Arc<Broking>,
    /// While it is not known who the client is: the user that its certificate names, and its address.
    login: Option<(Option<Arc<str>>, Option<IpAddr>)>,
    key: Key,
    wake: Arc<Wake>,
    stream: S,
    decoder: Decoder,
    input: BytesMut,
    /// How much is read at once: more where more comes.
    chunk: usize,
    output: BytesMut,
    /// What the messages of QoS 0 in it take.
    charge: Option<Charge>,
    /// How large `output` was when it was taken: what was written is gone from its capacity, not from its memory.
    taken: usize,
    /// Whether something may still be in the stream's own buffer.
    unflushed: bool,
    status: Status,
    /// When the client was last heard, or could not be.
    heard: Instant,
    timer: Pin<Box<Sleep>>,
    /// Set while another connection waits for the session.
    last_reads: Option<LastReads>,
    /// Kept for their memory.
    packets: VecDeque<Packet>,
    woken: Vec<Arc<Wake>>,
    /// Not known to have ended.
    open: bool,
}

/// Where a connection comes from.
#[derive(Debug)]
pub(super) struct Origin {
    /// For the log; the address, if there is one.
    pub(super) name: Arc<str>,
    /// Whether its other end is in this process.
    pub(super) local: bool,
    /// The user that the client's certificate names.
    pub(super) certificate: Option<Arc<str>>,
    /// When the client began to connect.
    pub(super) since: Instant,
}

/// What happens to a connection.
enum Happening {
    Read,
    /// There is nothing more to be read, and another connection waits for that.
    Dry,
    Written,
    /// There are more retained messages for the client, and it takes them.
    Replay,
    Woken,
    Timer,
    End(&'static str),
    Broken(io::Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    pub(super) fn new(broking: Arc<Broking>, origin: Origin, stream: S) -> Self {
        let Origin { name, local, certificate, since } = origin;
        let address = name.parse::<SocketAddr>().ok().map(|address| address.ip());
        let wake = Arc::new(Wake::default());
        let (key, status, max_packet) = {
            let mut core = broking.core();
            let key = core.open(name, local, Arc::clone(&wake));
            (key, core.status(key), core.limits.max_packet)
        };
        Self {
            timer: Box::pin(sleep_until(since + broking.connect_timeout)),
            broking,
            login: (!local).then_some((certificate, address)),
            key,
            wake,
            stream,
            decoder: Decoder::new(Version::V311, max_packet),
            input: BytesMut::new(),
            chunk: LITTLE,
            output: BytesMut::new(),
            charge: None,
            taken: 0,
            unflushed: false,
            status,
            heard: since,
            last_reads: None,
            packets: VecDeque::new(),
            woken: Vec::new(),
            open: true,
        }
    }

    /// Serves the client until the connection ends.
    pub(super) async fn run(mut self) {
        while !(self.status.closing && self.output.is_empty() && !self.unflushed) {
            if !self.packets.is_empty() {
                // What was read is more than is done in one go: others have their turn.
                yield_now().await;
                self.exchange(|_, _, _| ());
                continue;
            }
            let closing = self.status.closing;
            let next = poll_fn(|context| self.poll(context));
            let happening = if closing { timeout(FAREWELL, next).await } else { Ok(next.await) };
            let Ok(happening) = happening else { break };
            match happening {
                Happening::Read => {
                    let malformed = self.decode();
                    if self.login.is_some() && !self.packets.is_empty() {
                        // In memory of its own, which no connection needs later.
                        Box::pin(self.log_in()).await;
                    }
                    self.take_in(malformed);
                }
                Happening::Written | Happening::Woken => self.exchange(|_, _, _| ()),
                Happening::Replay => {
                    self.exchange(Core::replay_on);
                    yield_now().await;
                }
                Happening::Dry => self.exchange(Core::drained),
                Happening::Timer => self.overdue(),
                Happening::End(why) => return self.over(why),
                Happening::Broken(error) => return self.over(&error.to_string()),
            }
        }
        self.over("closed");
        // In memory of its own, which no connection needs before its end.
        let _ = timeout(FAREWELL, Box::pin(self.linger())).await;
    }

    /// Waits for the other end to close as well: bytes that nobody has read when a socket is closed make the kernel throw away
    /// what the client has not read yet, which is why it was disconnected.
    async fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut rest = [0; 1024];
        while self.stream.read(&mut rest).await? > 0 {}
        Ok(())
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Happening> {
        match self.poll_write(context) {
            Err(error) => return Poll::Ready(Happening::Broken(error)),
            Ok(true) => return Poll::Ready(Happening::Written),
            Ok(false) => {}
        }
        if let Some(last) = self.last_reads.filter(|_| !self.status.closing) {
            return self.poll_last(last, context);
        }
        let trickle = self.status.gate == Gate::Trickle;
        let due = !trickle || self.heard + TRICKLE <= Instant::now();
        let may_read = matches!(self.status.gate, Gate::Open | Gate::Trickle) && due && self.output.len() < UNWRITTEN;
        if may_read {
            match self.poll_read(context) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Happening::End("closed by the client")),
                Poll::Ready(Ok(_)) => return Poll::Ready(Happening::Read),
                Poll::Ready(Err(error)) => return Poll::Ready(Happening::Broken(error)),
                Poll::Pending => {}
            }
        }
        if self.wake.poll(context).is_ready() {
            return Poll::Ready(Happening::Woken);
        }
        if self.status.replays && self.output.len() < UNWRITTEN {
            return Poll::Ready(Happening::Replay);
        }
        if (!self.status.greeted || self.status.keep_alive.is_some() || (trickle && !due)) && !self.status.closing {
            return self.timer.as_mut().poll(context).map(|()| Happening::Timer);
        }
        Poll::Pending
    }

    /// Writes as much as goes; whether that was the last of it.
    fn poll_write(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        if self.output.is_empty() && !self.unflushed {
            return Ok(false);
        }
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.output)? {
                Poll::Pending => return Ok(false),
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    self.output.advance(written);
                    self.unflushed = true;
                    if self.status.gate == Gate::Full {
                        // It reads, although it cannot be heard.
                        self.heard = Instant::now();
                    }
                }
            }
        }
        if Pin::new(&mut self.stream).poll_flush(context)?.is_pending() {
            return Ok(false);
        }
        self.unflushed = false;
        Ok(true)
    }

    /// Finds out who a client is that has sent its CONNECT. Nothing is read meanwhile.
    async fn log_in(&mut self) {
        let Some(Packet::Connect(connect)) = self.packets.front() else { return };
        let Some((certificate, address)) = self.login.take() else { return };
        let broking = &self.broking;
        let check = broking.logins.check(connect, certificate, address, broking.runtime());
        let why = "there was no time to check the password";
        let late = Login::Refused { reason: Reason::SERVER_BUSY, why };
        let login = timeout_at(self.timer.deadline(), check).await.unwrap_or(late);
        broking.core().identify(self.key, login);
    }

    fn fail(&mut self, malformed: Malformed) {
        self.exchange(|core, key, now| core.fail(key, malformed, now));
    }

    /// Gives the core what has come, does one step more, and takes what it has. The lock is taken once.
    fn exchange(&mut self, step: impl FnOnce(&mut Core, Key, std::time::Instant)) {
        let now = Instant::now().into_std();
        let before = self.status;
        {
            let mut core = self.broking.core();
            core.begin(self.key);
            core.receive(self.key, &mut self.packets, now);
            step(&mut core, self.key, now);
            if self.output.is_empty() {
                if self.taken > SPARE {
                    self.output = BytesMut::new();
                }
                self.charge = core.take_output(self.key, &mut self.output, now);
                self.taken = self.output.capacity();
            }
            self.status = core.status(self.key);
            core.rest(self.key);
            core.take_woken(&mut self.woken);
            self.broking.keep_time(&core);
        }
        if self.packets.is_empty() && self.chunk == LITTLE {
            // A connection that has little to say keeps no room for it.
            self.packets = VecDeque::new();
        }
        if self.status.yields && self.last_reads.is_none() {
            self.last_reads = Some(LastReads::begin());
            self.set_timer();
        } else if self.status.greeted != before.greeted || self.status.gate != before.gate {
            self.set_timer();
        }
        self.woken.drain(..).for_each(|wake| wake.wake());
    }

    fn set_timer(&mut self) {
        let due = match (self.last_reads, self.status.gate, self.status.keep_alive) {
            (Some(last), Gate::Shut, _) => last.until,
            (Some(last), ..) => last.until.min(Instant::now() + QUIET),
            (None, Gate::Trickle, _) => self.heard + TRICKLE,
            (None, _, Some(limit)) => self.heard + limit,
            _ => return,
        };
        self.timer.as_mut().reset(due);
    }

    /// The time has come at which something should have been heard; often it was.
    fn overdue(&mut self) {
        let now = Instant::now();
        match (self.status.greeted, self.status.gate, self.status.keep_alive) {
            (false, ..) => {
                let what = "no CONNECT in time";
                self.fail(Malformed { what, reason: Reason::KEEP_ALIVE_TIMEOUT });
            }
            (_, Gate::Trickle, _) => {
                // Looks again, and reads.
                self.timer.as_mut().reset(now + TRICKLE);
            }
            // Who is not read cannot be heard.
            (_, Gate::Shut, limit) => {
                self.heard = now;
                self.timer.as_mut().reset(now + limit.unwrap_or(TRICKLE));
            }
            (_, _, Some(limit)) if now >= self.heard + limit => {
                let what = "silent for one and a half of its keep alive";
                self.fail(Malformed { what, reason: Reason::KEEP_ALIVE_TIMEOUT });
            }
            _ => self.set_timer(),
        }
    }

    fn over(&mut self, why: &str) {
        self.open = false;
        self.broking.lost(self.key, why);
    }
}

/// A task that is aborted leaves nothing behind.
impl<S> Drop for Link<S> {
    fn drop(&mut self) {
        if self.open {
            self.broking.lost(self.key, "the broker has stopped");
        }
    }
}
