//! Why one instance was picked, and the others were not.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_core::ObservedInstance;

use crate::algorithm::Algorithm;
use crate::endpoint::Endpoint;
use crate::error::PickError;
use crate::rules::{Candidates, Standing, Tier};
use crate::standings::{Member, Standings};

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
    /// Among which instances was to be chosen.
    pub candidates: Candidates,
    /// The tier from which was chosen: the first that has an instance which is not excluded. `None` where none could be picked.
    pub tier: Option<Tier>,
    /// The master stands in, because no normal instance can serve.
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
    pub instance: Arc<ObservedInstance>,
    /// What is known of it.
    pub standing: Standing,
    /// Its place in the order; `None` if it is never picked.
    pub tier: Option<Tier>,
    /// Whether the caller has excluded it.
    pub excluded: bool,
    /// Whether it was picked.
    pub chosen: bool,
    /// The weight that counts for this algorithm: 1 for those without weights, less than the registered while warming up,
    /// 0 for one that is in another tier than the one from which was chosen.
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
        let left = standings.members.iter().filter(|member| !excludes(&member.endpoint));
        let tier = left.filter_map(|member| member.tier).min();
        let consider = |member: &Member| {
            let is_used = tier.is_some() && member.tier == tier;
            let mut considered = Considered::new(member, is_used, algorithm, now);
            considered.excluded = excludes(&member.endpoint);
            considered.chosen = chosen.as_ref() == Ok(&considered.instance.code);
            considered
        };
        Self {
            service: standings.snapshot.service().clone(),
            revision: standings.snapshot.revision(),
            algorithm,
            instances: standings.members.iter().map(consider).collect(),
            chosen,
            candidates: standings.candidates,
            tier,
            fell_back: tier.is_some_and(Tier::stands_in),
            panic: standings.panic,
            now,
        }
    }
}

impl Considered {
    fn new(member: &Member, is_used: bool, algorithm: Algorithm, now: Instant) -> Self {
        let (endpoint, stats) = (&member.endpoint, &member.endpoint.stats);
        let ticks = stats.shared.ticks(now);
        let in_flight = endpoint.in_flight();
        let weight = match algorithm {
            _ if !is_used => 0.0,
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
            tier: member.tier,
            excluded: false,
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
        let used = self.instances.iter().filter(|one| one.tier.is_some() && one.tier == self.tier && !one.excluded);
        writeln!(
            f,
            "{} at revision {}, {}, role {}: {} of {} can be picked",
            self.service,
            self.revision,
            self.algorithm,
            self.candidates.name(),
            used.count(),
            self.instances.len()
        )?;
        if let Some(tier) = self.tier {
            writeln!(f, "tier {}: {tier}", tier.number())?;
        }
        if self.panic {
            writeln!(f, "too few would be left: ejections are disregarded")?;
        }
        let width = self.instances.iter().map(|one| one.instance.code.chars().count()).max().unwrap_or(0).max(4);
        writeln!(
            f,
            "  {:width$}  {:6}  {:>7}  {:>9}  {:>9}  {:>9}  {:>9}  {:>4}  STANDING",
            "CODE", "ROLE", "WEIGHT", "EFFECTIVE", "IN FLIGHT", "LATENCY", "SCORE", "TIER"
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
        let tier = one.tier.map_or("-".to_owned(), |tier| tier.number().to_string());
        writeln!(
            f,
            "{} {:width$}  {:6}  {:>7}  {:>9.3}  {:>9}  {latency:>9}  {score:>9}  {tier:>4}  {}{}",
            if one.chosen { '>' } else { ' ' },
            one.instance.code,
            one.instance.role.name(),
            one.instance.weight,
            one.weight,
            one.in_flight,
            self.words(one.standing),
            if one.excluded { ", excluded" } else { "" },
        )
    }

    fn words(&self, standing: Standing) -> Cow<'static, str> {
        match standing {
            Standing::Passing => "passing".into(),
            Standing::Unknown => "not checked yet".into(),
            Standing::Failing => "fails its checks".into(),
            Standing::Drained => "drained".into(),
            Standing::Weightless => "weight 0".into(),
            Standing::Guarded { has_failed: false } => "guarded".into(),
            Standing::Guarded { has_failed: true } => "guarded, has failed".into(),
            Standing::Ejected { until } => {
                format!("ejected for {:.1}s more", until.saturating_duration_since(self.now).as_secs_f64()).into()
            }
        }
    }
}
