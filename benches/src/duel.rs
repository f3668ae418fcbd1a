//! Two contenders and a target.

use std::fmt;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Rounds that each contender has; the first is for warming up and is not counted.
const ROUNDS: usize = 151;

/// How long a round of one contender is meant to take: so short that whatever else the machine does disturbs both alike.
const ROUND: Duration = Duration::from_millis(2);

/// Does so many operations and says how long they took.
pub type Contender<'a> = Box<dyn FnMut(u64) -> Duration + 'a>;

/// A comparison of ours with a peer's.
pub struct Duel<'a> {
    /// What is measured.
    pub what: String,
    /// Who it is measured against.
    pub peer: &'static str,
    /// The ratio of ours to the peer's that must not be exceeded.
    pub target: f64,
    /// Ours.
    pub ours: Contender<'a>,
    /// The peer's.
    pub theirs: Contender<'a>,
}

/// The medians of a duel, in nanoseconds an operation.
#[derive(Debug, Clone)]
pub struct Figures {
    what: String,
    peer: &'static str,
    target: f64,
    ours: f64,
    theirs: f64,
}

impl Duel<'_> {
    /// Lets both do their rounds in turn.
    #[must_use]
    pub fn run(mut self) -> Figures {
        let (our_batch, their_batch) = (batch(&mut self.ours), batch(&mut self.theirs));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (a, b) = (time(&mut self.ours, our_batch), time(&mut self.theirs, their_batch));
            if round > 0 {
                ours.push(a);
                theirs.push(b);
            }
        }
        Figures { what: self.what, peer: self.peer, target: self.target, ours: median(ours), theirs: median(theirs) }
    }
}

/// Runs `work` on so many threads at once, each doing `operations`, and gives the time of the slowest.
pub fn threads(count: usize, operations: u64, work: impl Fn(u64) + Sync) -> Duration {
    let barrier = Barrier::new(count);
    std::thread::scope(|scope| {
        let one = || {
            barrier.wait();
            let start = Instant::now();
            work(operations);
            start.elapsed()
        };
        let running: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).max().unwrap_or_default()
    })
}

/// The head of the table whose lines [`Figures`] are.
#[must_use]
pub fn header() -> &'static str {
    "| what | ours, ns | peer | peer's, ns | ratio | target | |\n|---|---:|---|---:|---:|---:|---|"
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, peer, target, ours, theirs } = self;
        let ratio = ours / theirs;
        let verdict = if ratio <= *target { "reached" } else { "**missed**" };
        write!(f, "| {what} | {ours:.1} | {peer} | {theirs:.1} | {ratio:.2} | ≤ {target} | {verdict} |")
    }
}

/// How many operations take about a [`ROUND`].
fn batch(contender: &mut Contender<'_>) -> u64 {
    let mut operations = 1000;
    loop {
        let took = contender(operations);
        if took > ROUND / 4 {
            return (operations as f64 * ROUND.as_secs_f64() / took.as_secs_f64()) as u64;
        }
        operations *= 2;
    }
}

fn time(contender: &mut Contender<'_>, operations: u64) -> f64 {
    contender(operations).as_secs_f64() * 1e9 / operations as f64
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
