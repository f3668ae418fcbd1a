//! `dev` without a terminal: events as lines, as `watch` writes them.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use pointsman::Service;

use crate::args::Output;
use crate::dev::board::Board;
use crate::dev::fleet::Fleet;
use crate::dev::traffic::lock;
use crate::failure::Failure;
use crate::signals::Signals;
use crate::{output, watch};

/// From one summary of the picks to the next.
const SUMMARY: Duration = Duration::from_secs(5);

/// Writes what happens, until a signal.
pub(super) async fn run(fleet: &Fleet, board: &Arc<Mutex<Board>>, output: Output) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    output::note("note: sample services in a registry of their own, until SIGINT; on a terminal this is a live view");
    let of_service = |service: &Service| {
        let directory = service.directory().clone();
        service.changes().from_nothing().map(move |change| (change, directory.clone()))
    };
    let mut changes = futures_util::stream::select_all(fleet.services().iter().map(of_service));
    let mut summaries = tokio::time::interval_at(tokio::time::Instant::now() + SUMMARY, SUMMARY);
    loop {
        tokio::select! {
            _ = signals.next() => return Ok(()),
            Some((change, directory)) = changes.next() => watch::tell(&change, &directory, output)?,
            _ = summaries.tick(), if output == Output::Table => {
                for service in fleet.services() {
                    output::line(&summary(service, &lock(board)))?;
                }
            }
        }
    }
}

fn summary(service: &Service, board: &Board) -> String {
    let mut text = format!("{} picks:", service.name());
    for instance in service.snapshot().instances() {
        let picks = board.picks(&instance.service, &instance.code);
        // Writing to a string cannot fail.
        let _ = write!(text, " {} {picks}", instance.code);
    }
    text
}
