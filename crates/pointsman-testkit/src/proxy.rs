//! A TCP proxy in front of a server, which cuts where a test says so.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::zookeeper::free_port;

mod mqtt;

use mqtt::Framing;

/// A TCP proxy on loopback. It knows the frames of ZooKeeper's protocol and the packets of MQTT, and passes everything else on
/// as it is.
///
/// It runs in a thread of its own, so that a test that blocks, or that pauses its time, does not hold it up. What a method says
/// holds when it returns: after `cut` no connection is left and none is accepted.
#[derive(Debug)]
pub struct CuttingProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// A request of ZooKeeper's protocol that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// Any kind of create.
    Create,
    /// A transaction.
    Multi,
    /// Either of the two.
    CreateOrMulti,
    /// A delete outside of a transaction.
    Delete,
    /// A change of data outside of a transaction.
    SetData,
}

/// Which way bytes go through a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    ToServer,
    /// From the server.
    ToClient,
}

/// A cut that has been ordered and will happen at the next request or packet that fits.
#[derive(Debug)]
pub struct OrderedCut(oneshot::Receiver<()>);

impl OrderedCut {
    /// Returns when it has happened.
    ///
    /// # Panics
    /// When it has not happened within 20 seconds, or when another order has taken its place.
    pub async fn happened(self) {
        let happened = timeout(Duration::from_secs(20), self.0).await;
        happened.expect("what was to be cut did not come").expect("another order took this one's place");
    }
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    state: watch::Sender<State>,
    order: Mutex<Option<Order>>,
    accepted: AtomicUsize,
    /// Bytes that were passed on, in both directions.
    bytes: AtomicUsize,
    /// Requests of ZooKeeper's protocol, by their types.
    requests: watch::Sender<BTreeMap<i32, usize>>,
    listening: AtomicBool,
    /// The epochs of the connections that live.
    live: Mutex<Vec<u64>>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// Counts cuts: a connection ends when it is no longer the one under which it was accepted.
    epoch: u64,
    delay: Duration,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    Cut,
    Blackhole,
}

#[derive(Debug)]
struct Order {
    target: Target,
    done: oneshot::Sender<()>,
}

/// What an order is waiting for.
#[derive(Debug)]
enum Target {
    /// Of ZooKeeper; with what it has to contain, such as a path.
    Request { op: Op, contains: String, moment: Moment },
    /// Of MQTT, of this type.
    Packet(Direction, u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeForwarding,
    AfterCommit,
}

impl CuttingProxy {
    /// Starts a proxy in front of `upstream`, open.
    #[must_use]
    pub fn start(upstream: SocketAddr) -> CuttingProxy {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let state = State { mode: Mode::Open, epoch: 0, delay: Duration::ZERO, closed: false };
        let shared = Arc::new(Shared {
            upstream,
            state: watch::Sender::new(state),
            order: Mutex::default(),
            accepted: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            requests: watch::Sender::default(),
            listening: AtomicBool::new(false),
            live: Mutex::default(),
        });
        let proxy = CuttingProxy { address, shared: shared.clone() };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(address, shared));
        });
        proxy.settle();
        proxy
    }

    /// `127.0.0.1:port`; the same for all of its life.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Closes all connections and refuses new ones until [`mend`](CuttingProxy::mend).
    pub fn cut(&self) {
        self.change(|state| {
            state.mode = Mode::Cut;
            state.epoch += 1;
        });
    }

    /// Closes all connections; new ones are welcome.
    pub fn cut_once(&self) {
        self.change(|state| state.epoch += 1);
    }

    /// Forwards nothing more in either direction and closes nothing; new connections are accepted and stay silent.
    pub fn blackhole(&self) {
        self.change(|state| state.mode = Mode::Blackhole);
    }

    /// Ends [`cut`](CuttingProxy::cut) and [`blackhole`](CuttingProxy::blackhole). What a blackhole has held back goes on its
    /// way now, as after a partition of the network.
    pub fn mend(&self) {
        self.change(|state| state.mode = Mode::Open);
    }

    /// Holds everything up for so long, in each direction: every frame of ZooKeeper's, of other protocols what comes in at once.
    pub fn delay(&self, delay: Duration) {
        self.change(|state| state.delay = delay);
    }

    /// The next request of this kind is carried out by the server, then its answer is swallowed and its connection cut. One
    /// that the server refuses does not count and is answered as usual.
    pub fn cut_after_commit(&self, op: Op) -> OrderedCut {
        self.cut_after_commit_of(op, "")
    }

    /// The same for a request that contains `text`, such as part of a path.
    pub fn cut_after_commit_of(&self, op: Op, text: &str) -> OrderedCut {
        self.order(Target::Request { op, contains: text.to_owned(), moment: Moment::AfterCommit })
    }

    /// The next request of this kind that contains `text` never reaches the server: its connection is cut.
    pub fn cut_before(&self, op: Op, text: &str) -> OrderedCut {
        self.order(Target::Request { op, contains: text.to_owned(), moment: Moment::BeforeForwarding })
    }

    /// The next MQTT packet of this type (the number of the standard: 3 is PUBLISH, 4 PUBACK, 5 PUBREC, 6 PUBREL, 7 PUBCOMP) in
    /// this direction is not delivered: everything before it is passed on, then its connection is cut.
    pub fn cut_at_mqtt(&self, direction: Direction, packet_type: u8) -> OrderedCut {
        self.order(Target::Packet(direction, packet_type))
    }

    /// How many connections it has accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Number of bytes that it has passed on, in both directions.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// How many requests of this type of ZooKeeper's protocol it has passed on (by the protocol's numbers: 4 is `getData`, 12
    /// `getChildren2`).
    #[must_use]
    pub fn requests(&self, op: i32) -> usize {
        self.shared.requests.borrow().get(&op).copied().unwrap_or_default()
    }

    /// Returns when there have been as many requests of this type.
    pub async fn until_requests(&self, op: i32, count: usize) {
        let enough = |requests: &BTreeMap<i32, usize>| requests.get(&op).is_some_and(|now| *now >= count);
        // The sender lives in `self`.
        let _ = self.shared.requests.subscribe().wait_for(enough).await;
    }

    /// Changes the state, and returns once that has taken effect.
    fn change(&self, change: impl FnOnce(&mut State)) {
        self.shared.state.send_modify(change);
        self.settle();
    }

    /// Blocks for a moment, until the proxy's thread has done what the state says.
    fn settle(&self) {
        let start = Instant::now();
        while !self.shared.is_settled() {
            assert!(start.elapsed() < Duration::from_secs(10), "the proxy at {} does not follow", self.address);
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn order(&self, target: Target) -> OrderedCut {
        let (done, happened) = oneshot::channel();
        *self.shared.order.lock().unwrap() = Some(Order { target, done });
        OrderedCut(happened)
    }
}

impl Drop for CuttingProxy {
    fn drop(&mut self) {
        self.shared.state.send_modify(|state| {
            state.closed = true;
            state.epoch += 1;
        });
    }
}

async fn accept(address: SocketAddr, shared: Arc<Shared>) {
    let mut state = shared.state.subscribe();
    loop {
        let now = *state.borrow_and_update();
        if now.closed {
            return;
        }
        if now.mode == Mode::Cut {
            let _ = state.changed().await;
            continue;
        }
        // Somebody else may have the port for a moment: a client that was given it while nobody listened.
        let Ok(listener) = TcpListener::bind(address).await else {
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        shared.listening.store(true, Ordering::SeqCst);
        let stay_open = state.wait_for(|state| state.closed || state.mode == Mode::Cut);
        tokio::select! {
            biased;
            _ = stay_open => {}
            () = accept_all(&listener, &shared) => {}
        }
        drop(listener);
        shared.listening.store(false, Ordering::SeqCst);
    }
}

async fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let epoch = {
            let state = shared.state.borrow();
            if state.mode == Mode::Cut {
                continue;
            }
            shared.live.lock().unwrap().push(state.epoch);
            state.epoch
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let shared = shared.clone();
        tokio::spawn(async move {
            let mut state = shared.state.subscribe();
            let cut = state.wait_for(|state| state.epoch != epoch);
            tokio::select! {
                biased;
                _ = cut => {}
                () = serve(client, &shared) => {}
            }
            let mut live = shared.live.lock().unwrap();
            if let Some(at) = live.iter().position(|&other| other == epoch) {
                live.swap_remove(at);
            }
        });
    }
}

async fn serve(client: TcpStream, shared: &Shared) {
    shared.passage().await;
    let Ok(server) = TcpStream::connect(shared.upstream).await else { return };
    drop(client.set_nodelay(true));
    drop(server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let awaited = Mutex::new(None);
    tokio::select! {
        () = forward(client_read, server_write, shared, Direction::ToServer, &awaited) => {}
        () = forward(server_read, client_write, shared, Direction::ToClient, &awaited) => {}
    }
    shared.passage().await;
}

/// What is to be done with a frame.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Forward,
    Cut,
}

/// An order whose request is on its way to the server, by its number.
type Awaited = Mutex<Option<(i32, Order)>>;

/// Looks at a request: does the order mean it?
fn request(shared: &Shared, awaited: &Awaited, frame: &[u8]) -> Verdict {
    let (Some(xid), Some(op)) = (number(frame, 0), number(frame, 4)) else { return Verdict::Forward };
    shared.requests.send_modify(|requests| *requests.entry(op).or_default() += 1);
    match shared.take_order(|target| target.is_request(op, frame)) {
        Some(order) if matches!(order.target, Target::Request { moment: Moment::BeforeForwarding, .. }) => {
            let _ = order.done.send(());
            Verdict::Cut
        }
        Some(order) => {
            *awaited.lock().unwrap() = Some((xid, order));
            Verdict::Forward
        }
        None => Verdict::Forward,
    }
}

/// Looks at a reply: does it answer the request that was ordered to be cut?
fn reply(shared: &Shared, awaited: &Awaited, frame: &[u8]) -> Verdict {
    let mut awaited = awaited.lock().unwrap();
    if awaited.as_ref().is_none_or(|(xid, _)| number(frame, 0) != Some(*xid)) {
        return Verdict::Forward;
    }
    // xid, zxid, error
    match awaited.take() {
        Some((_, order)) if number(frame, 12) == Some(0) => {
            let _ = order.done.send(());
            Verdict::Cut
        }
        // Refused: the order waits for the next one, unless a newer order has taken its place.
        Some((_, order)) => {
            shared.order.lock().unwrap().get_or_insert(order);
            Verdict::Forward
        }
        None => Verdict::Forward,
    }
}

fn number(frame: &[u8], at: usize) -> Option<i32> {
    frame.get(at..at + 4)?.try_into().ok().map(i32::from_be_bytes)
}

fn contains(frame: &[u8], text: &str) -> bool {
    text.is_empty() || frame.windows(text.len()).any(|window| window == text.as_bytes())
}

impl Target {
    fn is_request(&self, op: i32, frame: &[u8]) -> bool {
        matches!(self, Target::Request { op: own, contains: text, .. } if own.is(op) && contains(frame, text))
    }

    fn is_packet(&self, direction: Direction, packet_type: u8) -> bool {
        matches!(self, Target::Packet(own, kind) if (*own, *kind) == (direction, packet_type))
    }
}

impl Op {
    fn is(self, op: i32) -> bool {
        let create = matches!(op, 1 | 15 | 19 | 21);
        match self {
            Op::Create => create,
            Op::Multi => op == 14,
            Op::CreateOrMulti => create || op == 14,
            Op::Delete => matches!(op, 2 | 20),
            Op::SetData => op == 5,
        }
    }
}

impl Shared {
    /// Whether the listener is there or not as the mode has it, and no connection lives that has been cut.
    fn is_settled(&self) -> bool {
        let state = *self.state.borrow();
        let listening = self.listening.load(Ordering::SeqCst);
        listening == (state.mode != Mode::Cut) && self.live.lock().unwrap().iter().all(|&epoch| epoch == state.epoch)
    }

    /// The order, if it is for this; it is nobody else's from now on.
    fn take_order(&self, is_for_this: impl Fn(&Target) -> bool) -> Option<Order> {
        self.order.lock().unwrap().take_if(|order| is_for_this(&order.target))
    }

    /// Returns when frames may pass: not from a blackhole into a cut.
    async fn passage(&self) {
        let delay = self.state.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let _ = self.state.subscribe().wait_for(|state| state.mode == Mode::Open).await;
    }
}

/// Forwards one direction, frame by frame; the first frame of a connection has no header and is not judged. Returns at its end.
async fn forward(
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    direction: Direction,
    awaited: &Awaited,
) {
    let mut from = BufReader::with_capacity(16 << 10, from);
    let mut first = true;
    while let Ok(&[byte, ..]) = from.fill_buf().await {
        // The first byte of a length, for frames are far shorter than 128 MiB; or else MQTT, TLS, or a four-letter command.
        if byte > 7 {
            return forward_bytes(from, to, shared, direction, Framing::beginning_with(byte)).await;
        }
        let Ok(length) = from.read_u32().await else { return };
        let mut frame = vec![0; length as usize];
        if from.read_exact(&mut frame).await.is_err() {
            return;
        }
        shared.passage().await;
        let judge = if direction == Direction::ToServer { request } else { reply };
        if !first && judge(shared, awaited, &frame) == Verdict::Cut {
            return;
        }
        first = false;
        let whole = [&length.to_be_bytes()[..], &frame].concat();
        if to.write_all(&whole).await.is_err() {
            return;
        }
        shared.bytes.fetch_add(whole.len(), Ordering::Relaxed);
    }
}

async fn forward_bytes(
    mut from: impl AsyncBufRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    direction: Direction,
    mut framing: Framing,
) {
    while let Ok(bytes @ [_, ..]) = from.fill_buf().await {
        shared.passage().await;
        let ordered = framing.packets(bytes).into_iter().find_map(|(at, packet_type)| {
            shared.take_order(|target| target.is_packet(direction, packet_type)).map(|order| (at, order))
        });
        let length = ordered.as_ref().map_or(bytes.len(), |&(at, _)| at);
        let written = to.write_all(&bytes[..length]).await;
        if let Some((_, order)) = ordered {
            let _ = order.done.send(());
            return;
        }
        if written.is_err() {
            return;
        }
        shared.bytes.fetch_add(length, Ordering::Relaxed);
        from.consume(length);
    }
}
