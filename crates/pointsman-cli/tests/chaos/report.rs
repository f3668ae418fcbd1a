//! Says what came of a run.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::history::Time;
use crate::judge::{Verdict, condition, judge, twice};
use crate::origin::Arrival;
use crate::request::{Logged, Outcome, Request, Way};
use crate::truth::{Origin, Truth};

/// How long before a failure its timeline begins.
const BEFORE: Duration = Duration::from_secs(10);

/// How long after a failure its timeline ends.
const AFTER: Duration = Duration::from_millis(500);

/// Faults that follow one another within this time are shown with one timeline.
const TOGETHER: Duration = Duration::from_secs(1);

/// Longest time that one timeline is for.
const LONGEST: Duration = Duration::from_secs(5);

/// Most requests of one kind that are shown with one timeline; more are counted.
const REQUESTS: usize = 8;

/// Number of whole timelines shown of each kind of fault; later ones begin [`SHORTLY_BEFORE`].
const TIMELINES: usize = 3;

/// How long before a failure a short timeline begins.
const SHORTLY_BEFORE: Duration = Duration::from_secs(3);

/// Everything that is needed to judge a run.
pub(crate) struct Evidence {
    pub(crate) truth: Truth,
    pub(crate) requests: Vec<Request>,
    /// By the id of the request.
    pub(crate) logged: HashMap<String, Logged>,
    /// By the id of the request: when it arrived at which instance.
    pub(crate) arrivals: HashMap<String, Vec<(Time, String, Arrival)>>,
    pub(crate) counts: BTreeMap<String, usize>,
    /// Times in which nothing is killed that answers requests: no failure of a request that begins then is unavoidable.
    pub(crate) unbroken: Vec<(Time, Time)>,
}

/// What came of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) text: String,
    /// Avoidable failures and violations.
    pub(crate) faults: usize,
    pub(crate) answered: usize,
}

/// A request that should have gone another way, and what kind of fault that is.
struct Fault<'a> {
    request: &'a Request,
    kind: String,
}

impl Evidence {
    /// Judges every request.
    pub(crate) fn report(&self) -> Report {
        let mut report = Report::default();
        let (mut reasons, mut faults) = (BTreeMap::<&str, usize>::new(), Vec::new());
        for request in &self.requests {
            match judge(&self.truth, request, self.logged.get(&request.id)) {
                Verdict::Good => report.answered += 1,
                Verdict::Unavoidable(reason) if self.is_unbroken(request.start) => {
                    faults.push(Fault { request, kind: format!("failed, although nothing was killed ({reason})") });
                }
                Verdict::Unavoidable(reason) => *reasons.entry(reason).or_default() += 1,
                Verdict::Avoidable(kind) | Verdict::Violation(kind) => faults.push(Fault { request, kind }),
            }
        }
        let arrived = self.arrivals.iter().map(|(id, arrivals)| (id.clone(), arrivals.len())).collect();
        for id in twice(&self.truth, &self.requests, &arrived) {
            let request = self.requests.iter().find(|request| request.id == id).expect("one of the requests");
            faults.push(Fault { request, kind: "a POST has arrived twice".to_owned() });
        }
        faults.sort_by_key(|fault| fault.request.start);
        report.faults = faults.len();
        self.timelines(&mut report.text, &faults);
        self.statistics(&mut report.text, &reasons, &faults);
        report.faults += recovery(&self.truth, &mut report.text);
        report
    }

    fn is_unbroken(&self, time: Time) -> bool {
        self.unbroken.iter().any(|(from, to)| (*from..*to).contains(&time))
    }

    fn statistics(&self, text: &mut String, reasons: &BTreeMap<&str, usize>, faults: &[Fault<'_>]) {
        let failed = self.requests.iter().filter(|request| !request.is_answered()).count();
        let unavoidable: usize = reasons.values().sum();
        let _ = writeln!(text, "chaos: {} requests, {failed} failed", self.requests.len());
        let _ = writeln!(text, "  {unavoidable:6} unavoidable");
        for (reason, count) in reasons {
            let _ = writeln!(text, "  {count:6}   {reason}");
        }
        let _ = writeln!(text, "  {:6} avoidable", faults.len());
        let mut kinds = BTreeMap::<&str, usize>::new();
        faults.iter().for_each(|fault| *kinds.entry(&fault.kind).or_default() += 1);
        for (kind, count) in kinds {
            let _ = writeln!(text, "  {count:6}   {kind}");
        }
        let falls = self.truth.masters.windows(2).filter(|two| two[1].2 < two[0].2).count();
        let _ = writeln!(text, "  masterships: {}; terms lower than the one before: {falls}", self.truth.masters.len());
        let actions: Vec<String> = self.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let _ = writeln!(text, "  actions: {}", actions.join(", "));
    }

    /// Shows each fault, those that belong together with one timeline.
    fn timelines(&self, text: &mut String, faults: &[Fault<'_>]) {
        let mut shown = HashMap::<&str, usize>::new();
        for incident in incidents(faults) {
            let (first, last) = (&incident[0].request, &incident[incident.len() - 1].request);
            let _ = writeln!(text, "━━ {} avoidable from {} to {}", incident.len(), at(first.start), at(last.end));
            let mut kinds = BTreeMap::<&str, usize>::new();
            for fault in incident {
                let count = kinds.entry(&fault.kind).or_default();
                *count += 1;
                if *count <= REQUESTS {
                    self.show(text, fault);
                }
            }
            for (kind, count) in kinds.iter().filter(|(_, count)| **count > REQUESTS) {
                let _ = writeln!(text, "   and {} more: {kind}", count - REQUESTS);
            }
            let is_new = incident.iter().any(|fault| shown.get(&*fault.kind).is_none_or(|count| *count < TIMELINES));
            kinds.into_keys().for_each(|kind| *shown.entry(kind).or_default() += 1);
            self.world(text, first);
            let before = if is_new { BEFORE } else { SHORTLY_BEFORE };
            timeline(&self.truth, text, first.start, last.end.min(first.start + BEFORE), before);
        }
    }

    fn show(&self, text: &mut String, Fault { request, kind }: &Fault<'_>) {
        let Request { id, way, is_post, start, end, outcome } = request;
        let way = match way {
            Way::Proxy { serve, path, .. } => format!("proxy {serve} {path}"),
            Way::Agent { algorithm, picked } => {
                let picked =
                    picked.as_ref().map_or("nobody".to_owned(), |(code, port)| format!("{code} at port {port}"));
                format!("agent {algorithm} picked {picked}")
            }
        };
        let outcome = match outcome {
            Outcome::Answered(code) => format!("answered by {code}"),
            Outcome::Refused(status, problem) => format!("{status} {}", problem.as_deref().unwrap_or_default()),
            Outcome::Broken(why) => why.clone(),
            Outcome::Wrong(answer) => format!("another's answer: {answer}"),
        };
        let method = if *is_post { "POST" } else { "GET" };
        let _ = writeln!(text, "   {}–{} {id} {method} {way}: {outcome}", at(*start), at(*end));
        let _ = write!(text, "      {kind}");
        if let Some(Logged { code, retries, problem, .. }) = self.logged.get(id) {
            let code = code.as_deref().unwrap_or("none");
            let _ = write!(
                text,
                "; access log: instance {code}, {retries} retries, problem {}",
                problem.as_deref().unwrap_or("none")
            );
        }
        for (time, code, _) in self.arrivals.get(id).into_iter().flatten() {
            let _ = write!(text, "; arrived at {code} at {}", at(*time));
        }
        let _ = writeln!(text);
    }

    /// Shows each instance as it was when a request began.
    fn world(&self, text: &mut String, request: &Request) {
        let _ = writeln!(text, "   instances at {}:", at(request.start));
        for life in &self.truth.lives {
            let Some((since, state)) = life.states.at(request.start) else { continue };
            let is_long_gone = state.origin == Origin::Down && since + BEFORE < request.start;
            if !is_long_gone {
                let available = self.truth.is_available(life, request.start, request.end);
                let mark = if available { "available" } else { "" };
                let condition = condition(&self.truth, life, request.start, request.end);
                let _ = writeln!(text, "     {:10} {:5} {condition}, since {} {mark}", life.code, life.port, at(since));
            }
        }
        let masters = self.truth.masters(request.start, request.end);
        let masters: Vec<&str> = masters.into_iter().map(|life| &*life.code).collect();
        let _ = writeln!(text, "     master: {}", masters.join(", then "));
    }
}

/// Says so if not everything was well in time after the last action: that is one fault.
pub(crate) fn recovery(truth: &Truth, text: &mut String) -> usize {
    let Some(time) = truth.unrecovered else { return 0 };
    let _ = writeln!(text, "━━ not all instances were up and registered again in time:");
    for life in &truth.lives {
        let Some((since, state)) = life.states.at(time).filter(|(_, state)| state.origin != Origin::Down) else {
            continue;
        };
        let _ = writeln!(text, "     {} {:?} since {}", life.code, state, at(since));
    }
    timeline(truth, text, time.saturating_sub(BEFORE), time, 2 * BEFORE);
    1
}

/// Shows what happened around a time.
pub(crate) fn timeline(truth: &Truth, text: &mut String, start: Time, end: Time, before: Duration) {
    let _ = writeln!(text, "   what happened:");
    for (time, words) in &truth.log {
        if *time + before >= start && *time <= end + AFTER {
            let mark = if *time >= start && *time <= end { "*" } else { " " };
            let _ = writeln!(text, "    {mark}{} {words}", at(*time));
        }
    }
}

/// Puts those together that one timeline is for.
fn incidents<'a, 'b>(faults: &'b [Fault<'a>]) -> Vec<&'b [Fault<'a>]> {
    let (mut incidents, mut first) = (Vec::new(), 0);
    for next in 1..=faults.len() {
        let ends = faults.get(next).is_none_or(|fault| {
            let at = fault.request.start;
            at > faults[next - 1].request.start + TOGETHER || at > faults[first].request.start + LONGEST
        });
        if ends {
            incidents.push(&faults[first..next]);
            first = next;
        }
    }
    incidents
}

fn at(time: Time) -> String {
    format!("{:.3}", time.as_secs_f64())
}

/// Reads an access log.
pub(crate) fn read_access_log(path: &Path, logged: &mut HashMap<String, Logged>) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        let Some(id) = text("id") else { continue };
        let port = text("address").and_then(|address| address.rsplit(':').next()?.parse().ok());
        let retries = line["retries"].as_u64().unwrap_or_default();
        logged.insert(id, Logged { code: text("code"), port, retries, problem: text("problem") });
    }
}
