//! Says what came of a run behind a broker.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use super::judge::Fault;
use super::letters::Letter;
use super::load::{Outcome, Sent};
use super::world::Arrival;
use crate::history::Time;
use crate::report::{Report, recovery, timeline};
use crate::truth::Truth;

/// How long before a failure its timeline begins.
const BEFORE: Duration = Duration::from_secs(10);

/// Number of timelines shown of each kind of fault.
const TIMELINES: usize = 3;

/// Number of faults shown of each kind; more are counted.
const SHOWN: usize = 20;

/// Everything that is needed to judge a run.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub(super) truth: Truth,
    pub(super) sent: Vec<Sent>,
    /// By the id of the message: which instances have got it.
    pub(super) arrivals: HashMap<String, Vec<Arrival>>,
    /// By the id of the message.
    pub(super) letters: HashMap<String, Letter>,
    /// The messages that a relay has made dead letters by its own log.
    pub(super) logged_letters: HashSet<String>,
    pub(super) counts: BTreeMap<String, usize>,
    pub(super) spans: Vec<Span>,
    pub(super) has_embedded_broker: bool,
}

/// The time of a scenario.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) name: String,
    /// Whether nothing may fail.
    pub(super) is_planned: bool,
    pub(super) start: Time,
    pub(super) end: Time,
}

impl Evidence {
    /// Judges every message.
    pub(super) fn report(&self) -> Report {
        let mut report = Report::default();
        let (mut unavoidable, mut avoidable) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
        let mut in_spans = vec![(0, 0, 0); self.spans.len()];
        for sent in &self.sent {
            let span = self.spans.iter().position(|span| span.start <= sent.start && sent.start < span.end);
            let is_planned = span.is_some_and(|span| self.spans[span].is_planned);
            let mut other = (0, 0, 0);
            let (messages, failed, faults) = span.map_or(&mut other, |span| &mut in_spans[span]);
            *messages += 1;
            let Some(Fault { kind, is_avoidable }) = self.judge(sent) else {
                report.answered += 1;
                continue;
            };
            *failed += 1;
            if is_avoidable || is_planned {
                *faults += 1;
                report.faults += 1;
                let count = avoidable.entry(kind.clone()).or_default();
                *count += 1;
                self.show(&mut report.text, sent, &kind, *count);
            } else {
                *unavoidable.entry(kind).or_default() += 1;
            }
        }
        report.faults += recovery(&self.truth, &mut report.text);
        self.statistics(&mut report.text, [("unavoidable", &unavoidable), ("avoidable", &avoidable)]);
        for (Span { name, start, end, .. }, (messages, failed, faults)) in self.spans.iter().zip(in_spans) {
            let length = (*end - *start).as_secs_f64();
            let within = self.sent.iter().filter(|sent| *start <= sent.start && sent.start < *end);
            let longest = within.map(|sent| sent.end - sent.start).max().unwrap_or_default().as_secs_f64();
            let _ = writeln!(
                report.text,
                "  {name} ({length:.1} s): {messages} messages, {failed} failed, {faults} faults; the longest took {longest:.1} s"
            );
        }
        report
    }

    fn show(&self, text: &mut String, sent: &Sent, kind: &str, count: usize) {
        if count > SHOWN {
            return;
        }
        let Sent { id, start, end, outcome, .. } = sent;
        let why = match outcome {
            Outcome::Silence(why) | Outcome::Failed(why) | Outcome::Wrong(why) => why.clone(),
            Outcome::Answered(code) => format!("answered by {code}"),
            Outcome::Taken => "acknowledged".to_owned(),
        };
        let (from, to) = (start.as_secs_f64(), end.as_secs_f64());
        let _ = write!(text, "━━ {from:.3}–{to:.3} {id}: {kind}; {why}");
        for Arrival { at, code } in self.arrivals.get(id).into_iter().flatten() {
            let _ = write!(text, "; arrived at {code} at {:.3}", at.as_secs_f64());
        }
        if let Some(Letter { at, reason }) = self.letters.get(id) {
            let _ = write!(text, "; a dead letter ({reason}) at {:.3}", at.as_secs_f64());
        }
        let masters: Vec<&str> = self.truth.masters(*start, *end).into_iter().map(|life| &*life.code).collect();
        let _ = writeln!(text, "; master: {}", masters.join(", then "));
        if count <= TIMELINES {
            timeline(&self.truth, text, *start, *end, BEFORE);
        }
    }

    fn statistics(&self, text: &mut String, all: [(&str, &BTreeMap<String, usize>); 2]) {
        let broker = if self.has_embedded_broker { "the embedded broker" } else { "Mosquitto" };
        let repeated = self.arrivals.values().filter(|arrivals| arrivals.len() > 1).count();
        let _ = writeln!(
            text,
            "chaos behind {broker}: {} messages, {repeated} carried out more than once, {} dead letters",
            self.sent.len(),
            self.letters.len()
        );
        for (words, counts) in all {
            let _ = writeln!(text, "  {:6} {words}", counts.values().sum::<usize>());
            for (kind, count) in counts {
                let _ = writeln!(text, "  {count:6}   {kind}");
            }
        }
        let actions: Vec<String> = self.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let _ = writeln!(text, "  masterships: {}; actions: {}", self.truth.masters.len(), actions.join(", "));
    }
}
