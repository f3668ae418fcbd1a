//! `dev --tour`: the whole story, told and checked step by step.
//!
//! A step does something, waits for what must follow, and says what it saw. Whoever adds a part to Pointsman adds its
//! steps to [`steps::ALL`].
//!
//! | question | file |
//! |---|---|
//! | which steps there are, and in what order | `steps.rs` |
//! | those that go through the proxy | `proxy_steps.rs` |
//! | those that go through the agent | `http_steps.rs`, `api.rs` |
//! | what they hand on to one another | `stage.rs` |

mod api;
mod http_steps;
mod proxy_steps;
mod stage;
mod steps;

use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pointsman::Registry;
use serde_json::json;

use crate::args::Output;
use crate::dev::tour::stage::Stage;
use crate::failure::Failure;
use crate::{Outcome, output};

/// How long what must follow may take: far longer than it does on a slow machine.
const DEADLINE: Duration = Duration::from_secs(10);

/// Pause after each step on a terminal, for whoever reads along. Nothing depends on it.
const TO_READ: Duration = Duration::from_millis(900);

/// One step of the tour.
#[derive(Clone, Copy)]
struct Step {
    /// What it is about, as a heading.
    title: &'static str,
    play: for<'a> fn(&'a mut Stage) -> Playing<'a>,
}

type Playing<'a> = Pin<Box<dyn Future<Output = Result<(), Mismatch>> + Send + 'a>>;

/// What was not as it should have been.
#[derive(Debug)]
struct Mismatch {
    expected: String,
    seen: String,
}

impl Mismatch {
    fn new(expected: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { expected: expected.into(), seen: seen.into() }
    }
}

/// Plays all steps.
pub(super) async fn run(registry: &Registry, output: Output, pace: Option<Duration>) -> Outcome {
    let pace = pace.or((output == Output::Table && output::is_terminal()).then_some(TO_READ));
    let mut stage = Stage::set(registry, output).await?;
    let started = Instant::now();
    for (index, step) in steps::ALL.iter().enumerate() {
        let number = index + 1;
        if output == Output::Table {
            output::line(&format!("\n{number}. {}", step.title))?;
        }
        let result = (step.play)(&mut stage).await;
        tell(number, step, &result, &mut stage, output)?;
        if let Err(Mismatch { expected, seen }) = result {
            let title = step.title;
            return Err(Failure::new(format!("step {number}, \"{title}\": expected {expected}, saw {seen}")));
        }
        if let Some(pace) = pace {
            tokio::time::sleep(pace).await;
        }
    }
    stage.clear().await;
    if output == Output::Table {
        let (steps, seconds) = (steps::ALL.len(), started.elapsed().as_secs_f64());
        output::line(&format!("\nAll {steps} steps were as expected, in {seconds:.1} s."))?;
        output::line("Next: `pointsman dev` to play with it, `pointsman register --help` to use it.")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(
    number: usize,
    step: &Step,
    result: &Result<(), Mismatch>,
    stage: &mut Stage,
    output: Output,
) -> std::io::Result<()> {
    let said = stage.take_said();
    if output == Output::Table {
        return Ok(());
    }
    let mut line = json!({"step": number, "title": step.title, "ok": result.is_ok(), "said": said});
    if let Err(Mismatch { expected, seen }) = result {
        line["expected"] = json!(expected);
        line["seen"] = json!(seen);
    }
    output::json(&line)
}
