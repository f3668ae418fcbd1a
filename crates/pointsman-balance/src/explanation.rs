//! Why one instance was picked, and the others not.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_core::Instance;

use crate::algorithm::Algorithm;
use crate::endpoint::Endpoint;
use crate::error::PickError;
use crate::standings::{Member, Standing, Standings};

/// What a pick looked at. Its `Display` is a table, one line an instance, in the order of the codes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Explanation {
    /// The service.
    pub service: Arc<str>,
    /// The revision of the snapshot.
    pub revision: u64,
    /// How it was chosen.
    pub algorithm: Algorithm,
    /// The code of the chosen one, or why there is none.
    pub chosen: Result<Arc<str>, PickError>,
    /// All instances of the service.
    pub instances: Vec<Considered>,
    /// The master stands in, because no normal instance can take work.
    pub fell_back: bool,
    /// Ejections are disregarded, because too few instances would be left.
    pub panic: bool,
    now: Instant,
}

/// One instance, as a pick saw it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Considered {
    /// The instance.
    pub instance: Arc<Instance>,
    /// Whether it could be picked, and if not, why not.
    pub standing: Standing,
    /// Whether it was.
    pub chosen: bool,
    /// The weight that counts for this algorithm: 1 for those without weights, less than the registered while warming up,
    /// 0 for whom is no candidate.
    pub weight: f64,
    /// Claims in flight.
    pub in_flight: usize,
    /// The peak-sensitive average latency; `None` where none was measured.
    pub latency: Option<Duration>,
    /// What least connections and peak EWMA compare, lower is better: claims in flight ÷ weight, or nanoseconds ×
    /// (claims in flight + 1) ÷ weight. `None` for the other algorithms, which do not compare.
    pub score: Option<f64>,
}

impl Explanation {
    pub(crate) fn new(
        standings: &Standings,
        algorithm: Algorithm,
        chosen: Result<Arc<Endpoint>, PickError>,
        excludes: &dyn Fn(&Endpoint) -> bool,
        now: Instant,
    ) -> Self {
        let chosen = chosen.map(|endpoint| endpoint.instance.code.clone());
        let consider = |member: &Member| {
            let mut considered = Considered::new(member, algorithm, now);
            if considered.standing == Standing::Candidate && excludes(&member.endpoint) {
                considered.standing = Standing::Excluded;
            }
            considered.chosen = chosen.as_ref() == Ok(&considered.instance.code);
            considered
        };
        Self {
            service: standings.snapshot.service().clone(),
            revision: standings.snapshot.revision(),
            algorithm,
            instances: standings.members.iter().map(consider).collect(),
            chosen,
            fell_back: standings.fell_back,
            panic: standings.panic,
            now,
        }
    }
}

impl Considered {
    fn new(member: &Member, algorithm: Algorithm, now: Instant) -> Self {
        let (endpoint, stats) = (&member.endpoint, &member.endpoint.stats);
        let ticks = stats.shared.ticks(now);
        let in_flight = endpoint.in_flight();
        let weight = match algorithm {
            _ if !member.is_candidate() => 0.0,
            Algorithm::IpHash | Algorithm::UrlHash => f64::from(endpoint.instance.weight),
            _ if algorithm.uses_weights() => member.weight(),
            _ => member.warmth,
        };
        let score = match algorithm {
            _ if weight == 0.0 => None,
            Algorithm::LeastConnections => Some(in_flight as f64 / weight),
            Algorithm::PeakEwma => Some(stats.ewma.cost(in_flight, ticks) / weight),
            _ => None,
        };
        Self {
            instance: endpoint.instance.clone(),
            standing: member.standing,
            chosen: false,
            weight,
            in_flight,
            latency: stats.ewma.read(ticks).map(|nanos| Duration::from_nanos(nanos as u64)),
            score,
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let candidates = self.instances.iter().filter(|one| one.standing == Standing::Candidate).count();
        writeln!(
            f,
            "{} at revision {}, {}: {candidates} of {} can be picked",
            self.service,
            self.revision,
            self.algorithm,
            self.instances.len()
        )?;
        if self.fell_back {
            writeln!(f, "no normal instance can take work: the master stands in")?;
        }
        if self.panic {
            writeln!(f, "too few would be left: ejections are disregarded")?;
        }
        let width = self.instances.iter().map(|one| one.instance.code.chars().count()).max().unwrap_or(0).max(4);
        let heads = ["ROLE", "WEIGHT", "EFFECTIVE", "IN FLIGHT", "LATENCY", "SCORE", "STANDING"];
        let [role, weight, effective, in_flight, latency, score, standing] = heads;
        writeln!(
            f,
            "  {:width$}  {role:6}  {weight:>7}  {effective:>9}  {in_flight:>9}  {latency:>9}  {score:>9}  {standing}",
            "CODE"
        )?;
        for one in &self.instances {
            self.line(one, width, f)?;
        }
        match &self.chosen {
            Ok(code) => write!(f, "chosen: {code}"),
            Err(error) => write!(f, "none: {error}"),
        }
    }
}

impl Explanation {
    fn line(&self, one: &Considered, width: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = one.latency.map_or("-".to_owned(), |latency| format!("{:.1}ms", latency.as_secs_f64() * 1e3));
        let score = match one.score {
            None => "-".to_owned(),
            Some(cost) if self.algorithm == Algorithm::PeakEwma => format!("{:.1}ms", cost / 1e6),
            Some(score) => format!("{score:.3}"),
        };
        write!(
            f,
            "{} {:width$}  {:6}  {:>7}  {:>9.3}  {:>9}  {latency:>9}  {score:>9}  ",
            if one.chosen { '>' } else { ' ' },
            one.instance.code,
            one.instance.role.name(),
            one.instance.weight,
            one.weight,
            one.in_flight,
        )?;
        match one.standing {
            Standing::Candidate => writeln!(f, "candidate"),
            Standing::Drained => writeln!(f, "drained"),
            Standing::Weightless => writeln!(f, "weight 0"),
            Standing::Master => writeln!(f, "master"),
            Standing::Excluded => writeln!(f, "excluded"),
            Standing::Ejected { until } => {
                writeln!(f, "ejected for {:.1}s more", until.saturating_duration_since(self.now).as_secs_f64())
            }
        }
    }
}
