//! The steps that go through the proxy, as clients would: by plain HTTP.

use std::collections::BTreeMap;
use std::time::Instant;

use pointsman::{Instance, Registration, Registry, Service, Snapshot};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::dev::requests::{self, COOKIE, MASTER, PATH, Reply, Requests, SERVICE, STICKY};
use crate::dev::sample::{Pace, Server, who};
use crate::dev::tour::stage::{PICKS, Stage};
use crate::dev::tour::{DEADLINE, Mismatch};
use crate::failure::Failure;

/// A proxy, and a service behind it.
pub(super) struct Proxied {
    registry: Registry,
    requests: Requests,
    service: Service,
    registrations: BTreeMap<String, Registration>,
    servers: BTreeMap<String, Server>,
    /// While it is closed, requests stay under way.
    gate: watch::Sender<bool>,
}

/// Who has answered how often.
type Counts = BTreeMap<String, u32>;

/// Round robin; and what no route is for.
pub(super) async fn balance(stage: &mut Stage) -> Result<(), Mismatch> {
    let mut proxied = Proxied::start(&stage.registry).await?;
    for code in ["ress-1", "ress-2", "ress-3"] {
        proxied.add(code).await?;
    }
    proxied.settled("three instances", |snapshot| snapshot.normals().count() == 2).await?;
    let address = proxied.requests.address();
    stage.say(format!("A proxy listens at http://{address}; clients find it in the registry as http-balancer."));
    proxied.heard(&["ress-2", "ress-3"], PATH).await?;
    let counts = proxied.ask_often(PATH).await?;
    stage.say(format!("GET {PATH}/0 to {PATH}/{}: answered by {}; the master is left out.", PICKS - 1, words(&counts)));
    expect("ress-2 and ress-3 to answer 10 each", is(&counts, &[("ress-2", 10), ("ress-3", 10)]), &counts)?;
    let nowhere = proxied.ask("/nowhere").await?;
    stage.say(format!("GET /nowhere, which no route is for: {} {}", nowhere.status, nowhere.body));
    if nowhere.status != 404 || !nowhere.body.contains("urn:pointsman:problem:no-route") {
        return Err(Mismatch::new("404, no-route", format!("{} {}", nowhere.status, nowhere.body)));
    }
    stage.proxied = Some(proxied);
    Ok(())
}

/// With requests under way.
pub(super) async fn kill(stage: &mut Stage) -> Result<(), Mismatch> {
    let mut proxied = take(stage)?;
    proxied.gate.send_replace(false);
    let asking = proxied.ask_at_once(PICKS);
    proxied.at("ress-2", 10).await?;
    proxied.at("ress-3", 10).await?;
    // The process alone: the registry still lists it.
    proxied.servers.remove("ress-2");
    proxied.at("ress-3", 20).await?;
    proxied.gate.send_replace(true);
    let counts = answers(asking).await?;
    stage.say("20 requests are under way, 10 of them at ress-2, when its process is killed.");
    stage
        .say(format!("The proxy sends those 10 again, to the other: answered by {}; none has failed.", words(&counts)));
    expect("ress-3 to answer all 20", is(&counts, &[("ress-3", 20)]), &counts)?;
    let counts = proxied.ask_often(PATH).await?;
    stage.say(format!("The registry still lists ress-2, and the proxy asks it no more: {}.", words(&counts)));
    expect("ress-3 to answer all 20", is(&counts, &[("ress-3", 20)]), &counts)?;
    stage.say("A POST that may have arrived would not have been sent again, but answered with 502.");
    proxied.registrations.remove("ress-2");
    proxied.settled("ress-2 to be gone", |snapshot| snapshot.find("ress-2").is_none()).await?;
    stage.proxied = Some(proxied);
    Ok(())
}

/// With a request under way.
pub(super) async fn drain(stage: &mut Stage) -> Result<(), Mismatch> {
    let mut proxied = take(stage)?;
    proxied.add("ress-4").await?;
    proxied.heard(&["ress-3", "ress-4"], PATH).await?;
    proxied.gate.send_replace(false);
    let asking = proxied.ask_at_once(2);
    proxied.at("ress-3", 1).await?;
    let drained = proxied.registry.drain(SERVICE, "ress-3").await;
    drained.map_err(|error| Mismatch::new("ress-3 to be drained", error.to_string()))?;
    proxied.settled("ress-3 drained", |snapshot| snapshot.find("ress-3").is_some_and(|i| !i.takes_work())).await?;
    proxied.gate.send_replace(true);
    let counts = answers(asking).await?;
    stage.say(format!("ress-3 is drained while it is at a request. It ends what it has: {}.", words(&counts)));
    expect("one answer of each", is(&counts, &[("ress-3", 1), ("ress-4", 1)]), &counts)?;
    proxied.unheard("ress-3", PATH).await?;
    let counts = proxied.ask_often(PATH).await?;
    stage.say(format!("It gets nothing new: {}.", words(&counts)));
    expect("ress-4 to answer all 20", is(&counts, &[("ress-4", 20)]), &counts)?;
    let undrained = proxied.registry.undrain(SERVICE, "ress-3").await;
    undrained.map_err(|error| Mismatch::new("ress-3 to be undrained", error.to_string()))?;
    proxied.heard(&["ress-3", "ress-4"], PATH).await?;
    stage.proxied = Some(proxied);
    Ok(())
}

/// A route with `role = "master"`.
pub(super) async fn follow_the_master(stage: &mut Stage) -> Result<(), Mismatch> {
    let mut proxied = take(stage)?;
    let before = proxied.ask(MASTER).await?;
    stage.say(format!("GET {MASTER}: {}", before.body.trim_end()));
    if who(&before.body) != Some("ress-1") {
        return Err(Mismatch::new("the master, ress-1, to answer", format!("{} {}", before.status, before.body)));
    }
    proxied.servers.remove("ress-1");
    proxied.registrations.remove("ress-1");
    let master =
        proxied.settled("another master", |snapshot| snapshot.master().is_some_and(|it| &*it.code != "ress-1"));
    let master = master.await?.master().map(|master| master.code.to_string()).unwrap_or_default();
    proxied.heard(&[&master], MASTER).await?;
    let counts = proxied.ask_often(MASTER).await?;
    stage.say(format!("ress-1 is killed, and {master} is master now; the same request: {}.", words(&counts)));
    expect("the new master to answer all 20", is(&counts, &[(&master, 20)]), &counts)?;
    stage.proxied = Some(proxied);
    Ok(())
}

/// By a cookie; then all of it ends.
pub(super) async fn stay(stage: &mut Stage) -> Result<(), Mismatch> {
    let mut proxied = take(stage)?;
    proxied.add("ress-1").await?;
    let normals = proxied.settled("two normals", |snapshot| snapshot.normals().count() == 2).await?;
    let normals: Vec<_> = normals.normals().map(|instance| instance.code.to_string()).collect();
    proxied.heard(&normals.iter().map(String::as_str).collect::<Vec<_>>(), STICKY).await?;
    let first = proxied.ask(STICKY).await?;
    let cookie = first.field("set-cookie").and_then(|cookie| cookie.split(';').next()).unwrap_or_default().to_owned();
    stage.say(format!("GET {STICKY}: {}, with a cookie {cookie}", first.body.trim_end()));
    let Some(code) = who(&first.body).filter(|_| cookie.starts_with(COOKIE)) else {
        return Err(Mismatch::new("an answer with a cookie", format!("{} {}", first.status, first.body)));
    };
    let mut counts = Counts::new();
    for _ in 0..PICKS {
        let reply = proxied.requests.ask(STICKY, &[("cookie", &cookie)]).await;
        count(&mut counts, &reply.map_err(|error| Mismatch::new("an answer", error.to_string()))?)?;
    }
    stage.say(format!("With the cookie, 20 times: {}.", words(&counts)));
    expect("all 20 from the same", is(&counts, &[(code, 20)]), &counts)?;
    let counts = proxied.ask_often(STICKY).await?;
    stage.say(format!("Without it: {}.", words(&counts)));
    let each: Vec<_> = normals.iter().map(|code| (code.as_str(), 10)).collect();
    expect("10 of each", is(&counts, &each), &counts)?;
    proxied.end().await
}

impl Proxied {
    async fn start(registry: &Registry) -> Result<Self, Mismatch> {
        let started = |failure: Failure| Mismatch::new("a proxy to start", format!("{failure:?}"));
        let requests = Requests::start(registry, ([127, 0, 0, 1], 0).into()).await.map_err(started)?;
        let service = registry.discover(SERVICE).await;
        let service = service.map_err(|error| Mismatch::new("a service to follow", error.to_string()))?;
        let (registrations, servers) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            registry: registry.clone(),
            requests,
            service,
            registrations,
            servers,
            gate: watch::Sender::new(true),
        })
    }

    /// Starts an instance.
    async fn add(&mut self, code: &str) -> Result<(), Mismatch> {
        let expected = || format!("{code} to start");
        let server = Server::start(code, Pace::Gated(self.gate.subscribe())).await;
        let server = server.map_err(|error| Mismatch::new(expected(), error.to_string()))?;
        let instance = Instance::new(SERVICE).code(code).address(server.address());
        let registration = self.registry.register(instance).await;
        let registration = registration.map_err(|error| Mismatch::new(expected(), error.to_string()))?;
        self.registrations.insert(code.to_owned(), registration);
        self.servers.insert(code.to_owned(), server);
        Ok(())
    }

    async fn settled(
        &self,
        expected: &str,
        condition: impl FnMut(&Snapshot) -> bool,
    ) -> Result<std::sync::Arc<Snapshot>, Mismatch> {
        let waiting = tokio::time::timeout(DEADLINE, self.service.wait_for(condition)).await;
        let mismatch = || Mismatch::new(expected, format!("{:?}", self.service.snapshot().instances()));
        waiting.ok().and_then(Result::ok).ok_or_else(mismatch)
    }

    /// Waits until an instance is at so many requests.
    async fn at(&self, code: &str, flights: usize) -> Result<(), Mismatch> {
        let expected = || format!("{code} to be at {flights} requests");
        let Some(server) = self.servers.get(code) else { return Err(Mismatch::new(expected(), "that it is gone")) };
        let mut watching = server.flights().clone();
        match tokio::time::timeout(DEADLINE, watching.wait_for(|count| *count == flights)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Mismatch::new(expected(), format!("{}", *server.flights().borrow()))),
        }
    }

    async fn ask(&self, path: &str) -> Result<Reply, Mismatch> {
        let reply = self.requests.ask(path, &[]).await;
        reply.map_err(|error| Mismatch::new(format!("an answer to GET {path}"), error.to_string()))
    }

    /// Twenty requests one after the other, each of which an instance must answer.
    async fn ask_often(&self, path: &str) -> Result<Counts, Mismatch> {
        let mut counts = Counts::new();
        for number in 0..PICKS {
            count(&mut counts, &self.ask(&format!("{path}/{number}")).await?)?;
        }
        Ok(counts)
    }

    /// So many requests at the same time.
    fn ask_at_once(&self, count: u32) -> JoinSet<std::io::Result<Reply>> {
        let address = self.requests.address().to_string();
        let mut asking = JoinSet::new();
        for number in 0..count {
            let (address, path) = (address.clone(), format!("{PATH}/{number}"));
            asking.spawn(async move { requests::ask(&address, &path, &[]).await });
        }
        asking
    }

    /// Waits until the proxy, which hears of changes a moment later than we do, has had answers of these, and of them alone for as many
    /// requests as they are.
    async fn heard(&self, codes: &[&str], path: &str) -> Result<(), Mismatch> {
        let (mut last, until) = (Counts::new(), Instant::now() + DEADLINE);
        while Instant::now() < until {
            last.clear();
            for _ in codes {
                let reply = self.ask(path).await?;
                *last.entry(who(&reply.body).unwrap_or(&reply.body).to_owned()).or_default() += 1;
            }
            if codes.iter().all(|code| last.contains_key(*code)) {
                return Ok(());
            }
        }
        Err(Mismatch::new(format!("answers of {}", codes.join(" and ")), words(&last)))
    }

    /// Waits until this one is not picked any more: whoever is left has two turns in a row.
    async fn unheard(&self, code: &str, path: &str) -> Result<(), Mismatch> {
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            let replies = [self.ask(path).await?, self.ask(path).await?];
            if replies.iter().all(|reply| who(&reply.body).is_some_and(|one| one != code)) {
                return Ok(());
            }
        }
        Err(Mismatch::new(format!("no more answers of {code}"), "that it goes on"))
    }

    /// The proxy leaves first, so that it has somebody to ask until then.
    async fn end(self) -> Result<(), Mismatch> {
        self.requests.close().await;
        for (code, registration) in self.registrations {
            let closed = registration.close().await;
            closed.map_err(|error| Mismatch::new(format!("{code} to deregister"), error.to_string()))?;
        }
        Ok(())
    }
}

fn take(stage: &mut Stage) -> Result<Proxied, Mismatch> {
    stage.proxied.take().ok_or_else(|| Mismatch::new("the proxy of the step before", "none"))
}

async fn answers(asking: JoinSet<std::io::Result<Reply>>) -> Result<Counts, Mismatch> {
    let mut counts = Counts::new();
    for reply in asking.join_all().await {
        count(&mut counts, &reply.map_err(|error| Mismatch::new("an answer", error.to_string()))?)?;
    }
    Ok(counts)
}

/// Counts an answer, which must be an instance's.
fn count(counts: &mut Counts, reply: &Reply) -> Result<(), Mismatch> {
    let Some(code) = who(&reply.body).filter(|_| reply.status == 200) else {
        return Err(Mismatch::new("an answer of an instance", format!("{} {}", reply.status, reply.body)));
    };
    *counts.entry(code.to_owned()).or_default() += 1;
    Ok(())
}

fn is(counts: &Counts, expected: &[(&str, u32)]) -> bool {
    *counts == expected.iter().map(|(code, count)| ((*code).to_owned(), *count)).collect()
}

fn words(counts: &Counts) -> String {
    counts.iter().map(|(code, count)| format!("{code} {count}")).collect::<Vec<_>>().join(", ")
}

fn expect(expected: &str, holds: bool, seen: &Counts) -> Result<(), Mismatch> {
    if holds { Ok(()) } else { Err(Mismatch::new(expected, words(seen))) }
}
