//! Chaos behind a message broker: services that are killed, stopped, drained and restarted, and relays that are.
//!
//! A world has services behind a broker, and relays. The broker is Mosquitto, which is never restarted, with two relays (odd
//! seeds), or the one that is embedded in relay 0 (even seeds), which all others are clients of; they lose their sessions when that
//! relay ends. Relay 0 is then the only one, or (seeds that cannot be divided by 4) there is a relay 1, a client of that broker like
//! the services and the senders. Clients send requests and messages (QoS 1, may be carried out twice) by two routes: one for normal
//! instances, one for the master.
//!
//! # Rules
//!
//! A message *could be served* during a time if throughout
//!
//! - a relay was ready; with the embedded broker relay 0, and that for [`RECONNECT`](judge::RECONNECT) before: a client whose broker
//!   is gone tries again after pauses that double up to 5 s, and until then it is not subscribed, because the broker keeps its
//!   sessions in memory;
//! - an instance was available (as for HTTP: up, registered, not drained, and known to be all that);
//! - if it is for the master: no master was lost so lately that the registry cannot have made another one (as for HTTP). A master that
//!   resigns, is drained, or is told to leave is no excuse: messages for a master wait for the next one.
//!
//! | | is a fault if |
//! |---|---|
//! | a request | it is answered by an error, although it could be served throughout; but not by `instance-gone` when a relay was killed as well as the instance: a relay's journal keeps who asked, and not what, so nothing can be sent again |
//! | | there is no answer, or it comes late: although it could be served for [`WINDOW`](judge::WINDOW) without a break there was none by then; but not if the embedded broker ended within that time of its beginning: then it, or its answer, may have been in the memory of that, and the sender is told after `response_timeout` |
//! | | (but an answer may come late when a relay was killed meanwhile, or [`SETTLE`](crate::truth::SETTLE) before: what the broker has dealt to that waits for it, as does the answer to what that has sent on; and a relay that starts while the registry is away waits for the registry; nor when the instance that had it was killed or stopped, and the registry was away meanwhile, so that nobody could know) |
//! | | its answer is that of another request |
//! | a message | it is refused, or not taken, under the same conditions |
//! | | it was acknowledged, and became a dead letter although it could be served from its beginning until then |
//! | | it was acknowledged, and has neither arrived by the end nor become a dead letter; with the embedded broker, with which dead letters are lost that nobody has got yet, one in a relay's log counts if the message could not be served until it was acknowledged; and where there is a relay beside that broker, for which messages are acknowledged before they are with a service, a message may be lost with the broker until [`WINDOW`](judge::WINDOW) later |
//! | both | an instance answers it or gets it that had been drained for [`DRAIN`](crate::truth::DRAIN) or longer when it was sent, although another was available |
//! | both, for the master | an instance answers it or gets it that was master at no time from its beginning on (with the exceptions for HTTP) |
//!
//! A relay is available while its process runs and is ready; what has been dealt to one that is killed waits for it to come back. What has been
//! dealt to a service that is killed waits in its session, and may be answered by that service when it comes back.
//!
//! In scenarios that are planned changes (see [`scenarios`]) nothing is unavoidable: every failure is a fault.

mod action;
mod broker;
mod judge;
mod letters;
mod load;
mod report;
mod scenarios;
mod service;
mod world;

use std::collections::HashSet;
use std::time::Duration;

use pointsman::Registry;

pub(crate) use self::broker::Setup;
use self::load::{Load, Outcome, Sent};
use self::report::{Evidence, Span};
pub(crate) use self::scenarios::{Scenario, run_all};
pub(crate) use self::service::run as run_service;
use self::world::World;
use crate::report::Report;

/// Number of services in a random run.
const SERVICES: usize = 5;

/// Time for acknowledged messages to arrive, when all services are there.
const ARRIVAL: Duration = Duration::from_secs(10);

/// A random run from beginning to end.
pub(crate) async fn run(seed: u64, length: Duration) -> Report {
    let mut world = World::start(fastrand::Rng::with_seed(seed), Setup::of(seed), SERVICES).await;
    let load = start_load(&world).await;
    world.run(length).await;
    conclude(world, load, Vec::new()).await
}

async fn start_load(world: &World) -> Load {
    let registry = Registry::connect(&world.registry).await.unwrap();
    Load::start(&registry, &world.recorder).await
}

/// Ends the load, waits for what is still under way, and judges everything.
async fn conclude(mut world: World, load: Load, spans: Vec<Span>) -> Report {
    let sent = world.while_serving(load.end()).await;
    let acknowledged = |sent: &&Sent| matches!(sent.outcome, Outcome::Taken);
    let wanted: HashSet<&str> = sent.iter().filter(acknowledged).map(|sent| &*sent.id).collect();
    let arrivals = world.until_arrived(&wanted, ARRIVAL).await;
    let (recorder, counts) = (world.recorder.clone(), std::mem::take(&mut world.counts));
    let logged_letters = world.logged_letters();
    let (letters, has_embedded_broker) = (world.letters.all(), world.broker.is_embedded());
    world.end().await;
    let truth = recorder.truth().clone();
    Evidence { truth, sent, arrivals, letters, logged_letters, counts, spans, has_embedded_broker }.report()
}
