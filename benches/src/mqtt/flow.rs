//! Messages from one publisher to one or more subscribers.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use pointsman_mqtt::packet::{Publish, Qos};

use super::client::{Client, PAYLOAD, Template};

/// So many messages may be between the publisher and the subscribers: queues neither overflow nor run dry.
const CREDIT: u64 = 1000;
/// So many messages of QoS 1 the publisher sends without an acknowledgement.
const WINDOW: u64 = 100;
/// So many are written at once, so that the publisher takes little of the processor.
const BATCH: u64 = 25;
/// How long a subscriber lets messages gather before it reads again: waking it for each would cost more than all its work.
/// The credit lasts for longer.
const NAP: Duration = Duration::from_micros(500);
/// How long the last messages may take before they count as lost.
const LOST: Duration = Duration::from_secs(10);

/// A publisher and its subscribers.
#[derive(Debug)]
pub struct Flow {
    publisher: Client,
    subscribers: Vec<Client>,
    template: Template,
    qos: Qos,
}

/// What a round has brought.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// How many messages went through.
    pub messages: u64,
    /// From the first one's being sent to the last one's being received.
    pub elapsed: Duration,
}

impl Round {
    /// Messages a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.messages as f64 / self.elapsed.as_secs_f64()
    }
}

/// What the threads of a round know of one another.
struct Shared {
    received: AtomicU64,
    /// The count that the publisher sleeps for.
    wanted: AtomicU64,
    publisher: Thread,
    /// Everything has been sent, and received or lost.
    over: AtomicBool,
}

impl Shared {
    fn new() -> Self {
        Self {
            received: AtomicU64::new(0),
            wanted: AtomicU64::new(u64::MAX),
            publisher: thread::current(),
            over: AtomicBool::new(false),
        }
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    fn add(&self, count: u64) {
        let received = self.received.fetch_add(count, Ordering::SeqCst) + count;
        if received >= self.wanted.load(Ordering::SeqCst) {
            self.wanted.store(u64::MAX, Ordering::SeqCst);
            self.publisher.unpark();
        }
    }

    /// Sleeps until so many have been received, or for a moment.
    fn sleep_for(&self, count: u64) {
        self.wanted.store(count, Ordering::SeqCst);
        if self.received.load(Ordering::SeqCst) < count {
            thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Flow {
    /// Publishes on `topic` at one broker, and subscribes to each of `filters` at another, or the same.
    ///
    /// # Errors
    ///
    /// A broker cannot be reached.
    pub fn new((from, topic): (SocketAddr, &str), (to, filters): (SocketAddr, &[&str]), qos: Qos) -> io::Result<Self> {
        let mut subscribers = Vec::new();
        for (index, filter) in filters.iter().enumerate() {
            let mut subscriber = Client::connect(to, &format!("subscriber-{index}"))?;
            subscriber.subscribe(filter, qos)?;
            subscribers.push(subscriber);
        }
        let payload = vec![b'x'; PAYLOAD].into();
        let template = Template::new(&Publish { qos, topic: topic.into(), payload, ..Publish::default() });
        Ok(Self { publisher: Client::connect(from, "publisher")?, subscribers, template, qos })
    }

    /// As many messages as will go through in that time.
    ///
    /// # Errors
    ///
    /// A connection is gone, or a message is.
    pub fn full_speed(&mut self, time: Duration) -> io::Result<Round> {
        let shared = &Shared::new();
        let start = Instant::now();
        let (publisher, template, qos) = (&mut self.publisher, &mut self.template, self.qos);
        let receiving = self.subscribers.iter_mut().map(|subscriber| move || receive(subscriber, shared, NAP, |_| {}));
        let (messages, ends) = run(shared, receiving, || publish(publisher, template, qos, start + time, shared))?;
        let end = ends.into_iter().max().unwrap_or(start);
        Ok(Round { messages, elapsed: end.saturating_duration_since(start) })
    }

    /// So many messages a second, for that time: how long each was on its way.
    ///
    /// # Errors
    ///
    /// A connection is gone, or a message is.
    pub fn paced(&mut self, rate: u32, time: Duration) -> io::Result<Vec<Duration>> {
        let shared = Shared::new();
        let start = Instant::now();
        let (publisher, template, qos) = (&mut self.publisher, &mut self.template, self.qos);
        let mut latencies = Vec::new();
        let seen = |payload: &[u8]| {
            let sent = payload[..8].try_into().map(u64::from_be_bytes).unwrap_or_default();
            latencies.push(start.elapsed().saturating_sub(Duration::from_nanos(sent)));
        };
        let subscriber = &mut self.subscribers[0];
        let receiving = std::iter::once(|| receive(subscriber, &shared, Duration::ZERO, seen));
        let pace = Duration::from_secs(1) / rate;
        run(&shared, receiving, || publish_paced(publisher, template, qos, (start, time, pace)))?;
        Ok(latencies)
    }
}

/// Lets the subscribers receive while this thread publishes; how many went through, and when each subscriber had its last.
fn run<R>(
    shared: &Shared,
    receiving: impl Iterator<Item = R>,
    publish: impl FnOnce() -> io::Result<u64>,
) -> io::Result<(u64, Vec<Instant>)>
where
    R: FnOnce() -> io::Result<Instant> + Send,
{
    thread::scope(|scope| {
        let threads: Vec<_> = receiving.map(|receive| scope.spawn(receive)).collect();
        let sent = publish();
        let deadline = Instant::now() + LOST;
        if let Ok(sent) = sent {
            while shared.received() < sent && Instant::now() < deadline {
                shared.sleep_for(sent);
            }
        }
        shared.over.store(true, Ordering::Release);
        let ends =
            threads.into_iter().map(|thread| thread.join().map_err(|_| io::Error::other("a thread panicked"))?);
        let ends = ends.collect::<io::Result<Vec<Instant>>>()?;
        match (sent?, shared.received()) {
            (sent, received) if sent == received => Ok((sent, ends)),
            (sent, received) => Err(io::Error::other(format!("of {sent} messages {received} arrived"))),
        }
    })
}

/// Sends as fast as credit and window allow.
fn publish(client: &mut Client, template: &mut Template, qos: Qos, until: Instant, shared: &Shared) -> io::Result<u64> {
    let (mut sent, mut unacknowledged) = (0, 0);
    while Instant::now() < until {
        let credit = CREDIT - (sent - shared.received().min(sent));
        let window = if qos == Qos::AtMostOnce { credit } else { WINDOW - unacknowledged };
        let room = credit.min(window);
        if room >= BATCH {
            template.put(usize::try_from(room).unwrap_or_default(), &mut client.out);
            client.flush()?;
            sent += room;
            unacknowledged += if qos == Qos::AtMostOnce { 0 } else { room };
        } else if unacknowledged > 0 {
            unacknowledged -= acknowledgements(client)?;
        } else {
            // Not for each batch: a few times for all that is under way.
            shared.sleep_for(sent - CREDIT * 3 / 4);
        }
    }
    while unacknowledged > 0 {
        unacknowledged -= acknowledgements(client)?;
    }
    Ok(sent)
}

/// Sends one message at each point in time, or as soon after it as this thread runs.
fn publish_paced(
    client: &mut Client,
    template: &mut Template,
    qos: Qos,
    (start, time, pace): (Instant, Duration, Duration),
) -> io::Result<u64> {
    let (mut sent, mut due) = (0, start);
    let mut unacknowledged = 0;
    while due < start + time {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = u64::try_from(start.elapsed().as_nanos()).unwrap_or_default();
        template.payload()[..8].copy_from_slice(&now.to_be_bytes());
        template.put(1, &mut client.out);
        client.flush()?;
        (sent, due) = (sent + 1, due + pace);
        unacknowledged += u64::from(qos != Qos::AtMostOnce);
        while unacknowledged >= WINDOW {
            unacknowledged -= acknowledgements(client)?;
        }
    }
    while unacknowledged > 0 {
        unacknowledged -= acknowledgements(client)?;
    }
    Ok(sent)
}

fn acknowledgements(client: &mut Client) -> io::Result<u64> {
    let mut count = 0;
    client.read(|frame, _| count += u64::from(frame.kind() == 4))?;
    Ok(count)
}

/// Counts, and acknowledges, until the round is over; when the last message came.
fn receive(client: &mut Client, shared: &Shared, nap: Duration, mut seen: impl FnMut(&[u8])) -> io::Result<Instant> {
    let mut last = Instant::now();
    while !shared.over.load(Ordering::Acquire) {
        let mut count = 0;
        client.read(|frame, out| {
            if frame.kind() == 3 {
                count += 1;
                frame.acknowledge(out);
                seen(&frame.bytes[frame.bytes.len() - PAYLOAD..]);
            }
        })?;
        if count > 0 {
            last = Instant::now();
            shared.add(count);
            if !nap.is_zero() {
                thread::sleep(nap);
            }
        }
    }
    Ok(last)
}
