//! Rounds in turn, medians, and the table that stands in `benches/README.md`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it has measured")]

use std::time::Duration;

use super::process::Observed;
use super::{Result, Round};

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds of each contender, without the first, which warms up.
    pub rounds: usize,
    /// How long a round takes.
    pub time: Duration,
    /// What is measured: the rows whose name begins with this.
    pub only: String,
}

impl Plan {
    /// Whether the row of this name is wanted.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        name.starts_with(&self.only)
    }

    /// Lets both have their rounds in turn, each pair the other way round than the one before; the first pair is not counted.
    ///
    /// # Errors
    ///
    /// What a round says.
    pub fn in_turn<T>(
        &self,
        mut ours: impl FnMut() -> Result<T>,
        mut theirs: impl FnMut() -> Result<T>,
    ) -> Result<Vec<(T, T)>> {
        let mut pairs = Vec::new();
        for round in 0..=self.rounds {
            let pair = if round % 2 == 0 {
                let a = ours()?;
                (a, theirs()?)
            } else {
                let b = theirs()?;
                (ours()?, b)
            };
            if round > 0 {
                pairs.push(pair);
            }
        }
        Ok(pairs)
    }
}

/// What contenders take of the processor.
#[derive(Debug, Default)]
struct Taken {
    contender: String,
    processes: Vec<(String, f64)>,
    messages: u64,
}

/// The results.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<String>,
    taken: Vec<Taken>,
}

impl Table {
    /// A round of a contender, whose processes' time is counted for the second table.
    ///
    /// # Errors
    ///
    /// What the round says.
    pub fn observe(
        &mut self,
        contender: &str,
        processes: &[Observed],
        round: impl FnOnce() -> std::io::Result<Round>,
    ) -> Result<Round> {
        let before = processes.iter().map(Observed::processor_seconds).collect::<Result<Vec<f64>>>()?;
        let round = round()?;
        let place = self.taken.iter().position(|taken| taken.contender == contender).unwrap_or_else(|| {
            let processes = processes.iter().map(|process| (process.name.clone(), 0.0)).collect();
            self.taken.push(Taken { contender: contender.to_owned(), processes, messages: 0 });
            self.taken.len() - 1
        });
        let taken = &mut self.taken[place];
        taken.messages += round.messages;
        for ((process, before), (_, sum)) in processes.iter().zip(before).zip(&mut taken.processes) {
            *sum += process.processor_seconds()? - before;
        }
        Ok(round)
    }

    /// Rates of both in each pair of rounds. The ratio is the median of the pairs' ratios, and so is not quite that of the
    /// medians beside it.
    pub fn rates(&mut self, what: &str, pairs: &[(Round, Round)], least: Option<f64>) {
        let pairs: Vec<(f64, f64)> = pairs.iter().map(|(a, b)| (a.rate(), b.rate())).collect();
        let (ours, theirs, ratio) = medians(&pairs);
        let spread = quartiles(pairs.iter().map(|(a, b)| a / b).collect());
        let target = least.map(|least| (format!("≥ {least} ×"), ratio >= least));
        self.row(what, &format!("{ours:.0}/s"), &format!("{theirs:.0}/s"), &format!("{ratio:.2} × {spread}"), target);
    }

    /// Times of both in each pair of rounds, in microseconds.
    pub fn times(&mut self, what: &str, pairs: &[(f64, f64)], most: Option<f64>) {
        let (ours, theirs, ratio) = medians(pairs);
        let spread = quartiles(pairs.iter().map(|(a, b)| a / b).collect());
        let target = most.map(|most| (format!("≤ {most} ×"), ratio <= most));
        self.row(what, &format!("{ours:.0} µs"), &format!("{theirs:.0} µs"), &format!("{ratio:.2} × {spread}"), target);
    }

    /// A row of any kind; the target with whether it is reached.
    pub fn row(&mut self, what: &str, ours: &str, theirs: &str, ratio: &str, target: Option<(String, bool)>) {
        let (target, reached) = match target {
            None => (String::new(), ""),
            Some((target, true)) => (target, "yes"),
            Some((target, false)) => (target, "**no**"),
        };
        let row = format!("| {what} | {ours} | {theirs} | {ratio} | {target} | {reached} |");
        eprintln!("{row}");
        self.rows.push(row);
    }

    /// Prints both tables.
    pub fn print(&self) {
        println!("| what | Pointsman | peer | ratio (quartiles) | must reach | reached |\n|---|---|---|---|---|---|");
        self.rows.iter().for_each(|row| println!("{row}"));
        if self.taken.is_empty() {
            return;
        }
        println!("\n| processor seconds per 100,000 messages | of each process | together |\n|---|---|---:|");
        for Taken { contender, processes, messages } in &self.taken {
            let per = |seconds: f64| seconds * 100_000.0 / *messages as f64;
            let each: Vec<String> =
                processes.iter().map(|(name, seconds)| format!("{name} {:.2}", per(*seconds))).collect();
            let together = per(processes.iter().map(|(_, seconds)| seconds).sum());
            println!("| {contender} | {} | {together:.2} |", each.join(", "));
        }
    }
}

fn medians(pairs: &[(f64, f64)]) -> (f64, f64, f64) {
    let of = |pick: fn(&(f64, f64)) -> f64| median(pairs.iter().map(pick).collect());
    (of(|(a, _)| *a), of(|(_, b)| *b), of(|(a, b)| a / b))
}

/// The two that a quarter does not reach and does not exceed, as they are shown.
#[must_use]
pub fn quartiles(mut figures: Vec<f64>) -> String {
    figures.sort_unstable_by(f64::total_cmp);
    let at = |quarter: usize| figures[(figures.len() - 1) * quarter / 4];
    format!("({:.2}–{:.2})", at(1), at(3))
}

/// The one in the middle.
#[must_use]
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of times: the one that so many per cent do not exceed, in microseconds.
#[must_use]
pub fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times
        .get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}
