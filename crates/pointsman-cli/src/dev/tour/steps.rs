//! The steps of the tour.

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::sync::Arc;
use std::time::Instant;

use pointsman::{Algorithm, Status};

use crate::dev::messages::{Messages, TOPIC};
use crate::dev::tour::stage::{PICKS, SERVICE, Stage};
use crate::dev::tour::{DEADLINE, Mismatch, Step, http_steps, proxy_steps};
use crate::failure::Failure;

/// All, in their order: each goes on where the one before has left off.
pub(super) const ALL: &[Step] = &[
    Step { title: "Three instances register; one is master", play: |stage| Box::pin(register(stage)) },
    Step { title: "Twenty picks by each algorithm", play: |stage| Box::pin(ready(pick(stage))) },
    Step { title: "The master is killed; another follows", play: |stage| Box::pin(kill(stage)) },
    Step { title: "The dead master writes once more, and is refused", play: |stage| Box::pin(ready(fence(stage))) },
    Step { title: "The dead one comes back, as a normal instance", play: |stage| Box::pin(come_back(stage)) },
    Step { title: "One is drained: it gets no more calls", play: |stage| Box::pin(drain(stage)) },
    Step { title: "It is undrained: it gets calls again", play: |stage| Box::pin(undrain(stage)) },
    Step { title: "A weight is changed: the shares follow", play: |stage| Box::pin(weigh(stage)) },
    Step {
        title: "A request finds its instance, through the proxy",
        play: |stage| Box::pin(proxy_steps::balance(stage)),
    },
    Step { title: "An instance is killed at work: no request fails", play: |stage| Box::pin(proxy_steps::kill(stage)) },
    Step {
        title: "One is drained: it ends what it has, and gets nothing new",
        play: |stage| Box::pin(proxy_steps::drain(stage)),
    },
    Step { title: "A route follows the mastership", play: |stage| Box::pin(proxy_steps::follow_the_master(stage)) },
    Step { title: "A client stays with its instance, by a cookie", play: |stage| Box::pin(proxy_steps::stay(stage)) },
    Step { title: "Messages find an instance too, by its code", play: |stage| Box::pin(send(stage)) },
    Step {
        title: "A program in any language registers, over HTTP",
        play: |stage| Box::pin(http_steps::register(stage)),
    },
    Step { title: "Another holds a connection, and is gone with it", play: |stage| Box::pin(http_steps::hold(stage)) },
    Step { title: "It asks whom to call, and gives the claim back", play: |stage| Box::pin(http_steps::pick(stage)) },
    Step { title: "It watches: what changes comes as it happens", play: |stage| Box::pin(http_steps::watch(stage)) },
    Step { title: "The dead master's term is refused over HTTP too", play: |stage| Box::pin(http_steps::fence(stage)) },
    Step { title: "The last normal instance leaves: the master stands in", play: |stage| Box::pin(fall_back(stage)) },
    Step { title: "All is brought down", play: |stage| Box::pin(bring_down(stage)) },
];

async fn register(stage: &mut Stage) -> Result<(), Mismatch> {
    for (code, port, weight) in [("a", 50_001, 1), ("b", 50_002, 1), ("c", 50_003, 3)] {
        stage.register(code, port, weight).await?;
    }
    let snapshot = stage
        .expect("a as master, b and c as normals", |snapshot| {
            snapshot.master().is_some_and(|master| &*master.code == "a") && snapshot.normals().count() == 2
        })
        .await?;
    for instance in snapshot.instances() {
        let address = instance.address.as_deref().unwrap_or_default();
        stage.say(format!("{}  {address}  weight {}  {}", instance.code, instance.weight, instance.role));
    }
    stage.say("The first to register is master; its term is the number that fences what it writes.");
    let term = stage.master()?.role.term();
    let held = stage.members.get("a").and_then(|registration| registration.role().term());
    if held != term {
        return Err(Mismatch::new(format!("a itself to know its term {term:?}"), format!("{held:?}")));
    }
    Ok(())
}

fn pick(stage: &mut Stage) -> Result<(), Mismatch> {
    for algorithm in Algorithm::ALL {
        let picks = stage.picks(algorithm)?;
        stage.show(algorithm, &picks);
        picks.expect(algorithm, "all of 20 picks to the normal instances", |p| p.of("b") + p.of("c") == PICKS)?;
        match algorithm {
            Algorithm::RoundRobin => picks.expect(algorithm, "b 10, c 10", |p| p.of("b") == 10)?,
            Algorithm::WeightedRoundRobin | Algorithm::LeastConnections => {
                picks.expect(algorithm, "b 5, c 15, as their weights 1 and 3 say", |p| p.of("b") == 5)?;
            }
            _ => picks.expect(algorithm, "picks to both", |p| p.of("b") > 0 && p.of("c") > 0)?,
        }
        if algorithm.uses_key() {
            let again = stage.picks(algorithm)?;
            again.expect(algorithm, "the same instance for the same key", |again| again.of("b") == picks.of("b"))?;
        }
    }
    stage.say("c weighs 3, b 1; the master takes calls only where there is no normal instance.");
    Ok(())
}

async fn kill(stage: &mut Stage) -> Result<(), Mismatch> {
    let master = stage.master()?;
    let Some(term) = master.role.term() else { return Err(Mismatch::new("a master with a term", "none")) };
    written(stage, term)?;
    stage.zombie = Some(term);
    stage.members.remove(&*master.code);
    let snapshot = stage
        .expect("another master with a higher term, and two instances", |snapshot| {
            let higher = snapshot.master().is_some_and(|next| next.role.term() > Some(term));
            higher && snapshot.instances().len() == 2
        })
        .await?;
    let next = snapshot.master().map(|next| format!("{} is {} now", next.code, next.role)).unwrap_or_default();
    stage.say(format!("{} was master with term {term}; {next}.", master.code));
    stage.say("Only the instance next in line acts, in one step: no moment with two masters, no stampede.");
    Ok(())
}

/// A write under this term passes the guard of the store.
fn written(stage: &Stage, term: pointsman::Term) -> Result<(), Mismatch> {
    stage
        .store
        .check(term)
        .map_err(|stale| Mismatch::new(format!("a write with term {term} to pass"), stale.to_string()))
}

fn fence(stage: &mut Stage) -> Result<(), Mismatch> {
    let Some(term) = stage.master()?.role.term() else { return Err(Mismatch::new("a master with a term", "none")) };
    written(stage, term)?;
    stage.say(format!("The new master has written with term {term}."));
    let Some(zombie) = stage.zombie else { return Err(Mismatch::new("a term of the dead master", "none")) };
    match stage.store.check(zombie) {
        Err(stale) => stage.say(format!("A write of the old master is refused by the guard: {stale}.")),
        Ok(()) => return Err(Mismatch::new(format!("a write with term {zombie} to be refused"), "that it passed")),
    }
    Ok(())
}

async fn come_back(stage: &mut Stage) -> Result<(), Mismatch> {
    stage.register("a", 50_001, 1).await?;
    stage
        .expect("a back as a normal instance", |snapshot| {
            snapshot.find("a").is_some_and(|a| !a.role.is_master()) && snapshot.normals().count() == 2
        })
        .await?;
    let master = stage.master()?;
    stage.say(format!("a is back as a normal instance; {} stays {}.", master.code, master.role));
    Ok(())
}

async fn drain(stage: &mut Stage) -> Result<(), Mismatch> {
    operated(stage.registry.drain(SERVICE, "a").await)?;
    let drained = |status| status == Status::Drained;
    stage.expect("a drained", |snapshot| snapshot.find("a").is_some_and(|a| drained(a.status))).await?;
    let picks = stage.picks(Algorithm::RoundRobin)?;
    stage.show(Algorithm::RoundRobin, &picks);
    picks.expect(Algorithm::RoundRobin, "none of 20 picks to a", |picks| picks.of("a") == 0)?;
    stage.say("a is still registered. Registering again would not undo the drain: it is stored apart.");
    Ok(())
}

async fn undrain(stage: &mut Stage) -> Result<(), Mismatch> {
    operated(stage.registry.undrain(SERVICE, "a").await)?;
    stage.expect("a undrained", |snapshot| snapshot.find("a").is_some_and(|a| a.takes_work())).await?;
    let picks = stage.picks(Algorithm::RoundRobin)?;
    stage.show(Algorithm::RoundRobin, &picks);
    picks.expect(Algorithm::RoundRobin, "a and c 10 picks each", |picks| picks.of("a") == 10 && picks.of("c") == 10)
}

async fn weigh(stage: &mut Stage) -> Result<(), Mismatch> {
    let algorithm = Algorithm::WeightedRoundRobin;
    let picks = stage.picks(algorithm)?;
    stage.show(algorithm, &picks);
    picks.expect(algorithm, "a 5, c 15", |picks| picks.of("a") == 5)?;
    operated(stage.registry.set_weight(SERVICE, "a", Some(9)).await)?;
    stage.expect("a with weight 9", |snapshot| snapshot.find("a").is_some_and(|a| a.weight == 9)).await?;
    let picks = stage.picks(algorithm)?;
    stage.say("a weighs 9 now, instead of 1:");
    stage.show(algorithm, &picks);
    picks.expect(algorithm, "a 15, c 5", |picks| picks.of("a") == 15)?;
    operated(stage.registry.set_weight(SERVICE, "a", None).await)?;
    stage.expect("a with its own weight", |snapshot| snapshot.find("a").is_some_and(|a| a.weight == 1)).await?;
    Ok(())
}

fn operated(result: pointsman::Result<()>) -> Result<(), Mismatch> {
    result.map_err(|error| Mismatch::new("the registry to take it", error.to_string()))
}

/// The service `cfgs` has no address: its instances subscribe, each under its code, and the relay rewrites topics.
async fn send(stage: &mut Stage) -> Result<(), Mismatch> {
    let started = |failure: Failure| Mismatch::new("a broker, a relay and instances to start", format!("{failure:?}"));
    let messages = Messages::start(&stage.registry, ([127, 0, 0, 1], 0).into()).await.map_err(started)?;
    stage.say(format!("An MQTT broker listens at {}, with the relay in it.", messages.address()));
    let mut instances = Vec::new();
    for code in ["cfgs-1", "cfgs-2", "cfgs-3"] {
        instances.push(messages.serve(&stage.registry, code, 1, false).await.map_err(started)?);
    }
    let request = async |text: String| {
        let answer = messages.request(TOPIC, &text).await;
        answer.map_err(|error| Mismatch::new("an answer", error.to_string()))
    };
    // The relay hears of them a moment later than we do.
    let (mut heard, until) = (BTreeSet::new(), Instant::now() + DEADLINE);
    while !["cfgs-2", "cfgs-3"].into_iter().all(|code| heard.contains(code)) && Instant::now() < until {
        heard.insert(request("who is there?".to_owned()).await?);
    }
    let mut counts: BTreeMap<Arc<str>, u32> = BTreeMap::new();
    for number in 0..PICKS {
        *counts.entry(request(format!("request {number}")).await?).or_default() += 1;
    }
    let seen = counts.iter().map(|(code, count)| format!("{code} {count}")).collect::<Vec<_>>().join(", ");
    stage.say(format!("{PICKS} requests to {TOPIC} were answered by: {seen}."));
    stage.say(format!("cfgs-2 has got its own as cfgs-2{TOPIC}; the master, cfgs-1, is left out."));
    if counts.values().copied().collect::<Vec<_>>() != [PICKS / 2, PICKS / 2] {
        return Err(Mismatch::new("cfgs-2 and cfgs-3 to answer 10 each", seen));
    }
    match messages.request("/login/nowhere", "is anybody there?").await {
        Err(error @ pointsman::mqtt::Error::NotDelivered { .. }) => {
            stage.say(format!("A topic that no instance listens to is not met with silence: {error}."));
        }
        other => return Err(Mismatch::new("an error at once", format!("{other:?}"))),
    }
    for instance in instances {
        instance.close().await.map_err(|error| Mismatch::new("an instance to leave", error.to_string()))?;
    }
    messages.close().await;
    Ok(())
}

async fn fall_back(stage: &mut Stage) -> Result<(), Mismatch> {
    let master = stage.master()?;
    for code in ["a", "c"] {
        close(stage, code).await?;
    }
    stage.expect("only the master", |snapshot| snapshot.instances().len() == 1 && snapshot.master().is_some()).await?;
    let picks = stage.picks(Algorithm::RoundRobin)?;
    stage.show(Algorithm::RoundRobin, &picks);
    picks.expect(Algorithm::RoundRobin, "all picks to the master", |picks| picks.of(&master.code) == PICKS)
}

async fn bring_down(stage: &mut Stage) -> Result<(), Mismatch> {
    let codes: Vec<_> = stage.members.keys().cloned().collect();
    for code in codes {
        close(stage, &code).await?;
    }
    stage.expect("no instances", |snapshot| snapshot.instances().is_empty()).await?;
    match stage.picks(Algorithm::RoundRobin) {
        Ok(_) => Err(Mismatch::new("no pick", "a pick")),
        Err(Mismatch { seen, .. }) => {
            stage.say(format!("Nobody is left, and whoever asks is told so: {seen}."));
            Ok(())
        }
    }
}

/// Deregisters one.
async fn close(stage: &mut Stage, code: &str) -> Result<(), Mismatch> {
    let Some(registration) = stage.members.remove(code) else { return Ok(()) };
    let expected = || format!("{code} to deregister");
    match tokio::time::timeout(DEADLINE, registration.close()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Mismatch::new(expected(), error.to_string())),
        Err(_) => Err(Mismatch::new(expected(), format!("no answer within {DEADLINE:?}"))),
    }
}
