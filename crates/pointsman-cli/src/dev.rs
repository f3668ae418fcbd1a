//! `dev`: everything on one machine, embedded, and shown live.

pub(crate) mod beacon;
mod board;
mod fleet;
mod lines;
mod messages;
mod picture;
mod requests;
mod sample;
mod screen;
mod tour;
mod traffic;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use pointsman::Registry;
use pointsman::agent::{self, Agent, Settings};

use crate::args::{Command, Dev, Global, Output};
use crate::dev::beacon::Beacon;
use crate::dev::board::Board;
use crate::dev::fleet::Fleet;
use crate::dev::messages::{Messages, TOPIC};
use crate::dev::requests::{PATH, Requests};
use crate::dev::screen::Doors;
use crate::dev::traffic::lock;
use crate::failure::{Failure, chain};
use crate::{Outcome, output, session};

/// The registry within this process.
const REGISTRY: &str = "memory://dev";

/// Whether the command draws on the terminal, instead of writing lines.
pub(crate) fn draws(command: &Command, output: Output) -> bool {
    matches!(command, Command::Dev(Dev { tour: false, .. })) && output == Output::Table && is_drawable()
}

/// Whether stdout is a terminal that can be drawn on.
fn is_drawable() -> bool {
    output::is_terminal() && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// `pointsman dev [--tour]`.
pub(crate) async fn run(args: &Dev, global: &Global) -> Outcome {
    let registry = Registry::connect(REGISTRY).await?;
    if args.tour {
        let outcome = tour::run(&registry, global.output, args.pace).await;
        session::close(registry).await;
        return outcome;
    }
    let agent = start_agent(&registry).await?;
    let dashboard = format!("http://{}", agent.address());
    let requests = Arc::new(Requests::start(&registry, requests::usual_address()).await?);
    let messages = Arc::new(Messages::start(&registry, messages::usual_address()).await?);
    add_metrics(&agent, &requests, &messages);
    let _beacon = Beacon::light(&dashboard);
    let mut fleet = Fleet::start(&registry, &messages).await?;
    let board = Arc::new(Mutex::new(Board::new()));
    let (proxy, broker) = (format!("http://{}", requests.address()), messages.address());
    let calls = format!("proxy {proxy}{PATH}  broker mqtt://{broker} {TOPIC}");
    lock(&board).add_event(format!("dashboard and HTTP API at {dashboard}/"));
    lock(&board).add_event(format!("HTTP proxy at {proxy}: any client can ask for {PATH}"));
    lock(&board).add_event(format!("MQTT broker with the relay in it at {broker}: any client can publish to {TOPIC}"));
    let moved = [
        ("dashboard and HTTP API", USUAL, agent.address()),
        ("HTTP proxy", requests::usual_address(), requests.address()),
        ("MQTT broker", messages::usual_address(), broker),
    ];
    let moved: Vec<_> = moved.into_iter().filter(|(_, usual, now)| usual != now).collect();
    for (what, usual, now) in &moved {
        lock(&board).add_event(format!("port {} is taken: the {what} has port {} instead", usual.port(), now.port()));
    }
    let traffic = traffic::start(&fleet, &requests, &messages, &board);
    let drawn = draws(&Command::Dev(args.clone()), global.output);
    if !drawn {
        for (what, usual, now) in &moved {
            output::note(&format!("note: port {} is taken: the {what} has port {} instead", usual.port(), now.port()));
        }
        output::note(&format!("note: dashboard at {dashboard}/, the agent's HTTP API beside it"));
        output::note(&format!("note: HTTP proxy at {proxy}/; requests for {PATH} are balanced over ress"));
        output::note(&format!("note: MQTT broker at {broker}; messages to {TOPIC} are balanced over cfgs"));
    }
    let ended = if drawn {
        screen::run(&mut fleet, &traffic, &board, &Doors { dashboard, calls }).await
    } else {
        lines::run(&fleet, &board, global.output).await
    };
    drop(traffic);
    // Calls that were cut off just now may still hold them: then they end with the process.
    if let Some(requests) = Arc::into_inner(requests) {
        requests.close().await;
    }
    fleet.close().await;
    if let Some(messages) = Arc::into_inner(messages) {
        messages.close().await;
    }
    agent.close().await;
    session::close(registry).await;
    ended.map(|()| ExitCode::SUCCESS)
}

/// Lets the agent, and with it the dashboard, tell what the others have counted.
fn add_metrics(agent: &Agent, requests: &Arc<Requests>, messages: &Arc<Messages>) {
    // They end before the agent does.
    let (requests, messages) = (Arc::downgrade(requests), Arc::downgrade(messages));
    agent.add_metrics(move || {
        let (requests, messages) = (requests.upgrade(), messages.upgrade());
        async move {
            let mut text = requests.map(|requests| requests.metrics()).unwrap_or_default();
            if let Some(messages) = messages {
                text.push_str(&messages.metrics().await);
            }
            text
        }
    });
}

/// Where an agent listens, unless somebody else does.
const USUAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7480);

/// Starts an agent of this registry: at the usual address, or, if that is taken, at a free port.
async fn start_agent(registry: &Registry) -> Result<Agent, Failure> {
    let agent = match Agent::start(registry, Settings::new(USUAL)).await {
        Err(agent::Error::Listen { .. }) => Agent::start(registry, Settings::new(SocketAddr::new(USUAL.ip(), 0))).await,
        started => started,
    };
    agent.map_err(|error| Failure::new(format!("start the agent: {}", chain(&error))))
}
