//! `drain`, `undrain`, `weight`: what an operator sets, and what comes of it; `overrides`, `clear-overrides`: what all have set.

use std::process::ExitCode;
use std::sync::Arc;

use pointsman::{ClearedOverrides, OVERRIDES_KEPT, OverrideOf, Registry, Snapshot};
use serde::Serialize;
use serde_json::json;

use crate::args::{Global, OfInstance, Target, Weight};
use crate::failure::Failure;
use crate::output::shown;
use crate::{Outcome, codes, output, session, table};

/// `pointsman drain SERVICE CODE` and `pointsman undrain SERVICE CODE`.
pub(crate) async fn drain(target: &Target, drained: bool, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let (snapshot, code) = find(&registry, target).await?;
    let (service, code) = (&target.service, &*code);
    if drained {
        session::patiently(&registry, registry.drain(service, code)).await?;
    } else {
        session::patiently(&registry, registry.undrain(service, code)).await?;
    }
    session::close(registry).await;
    let effect = Effect::new(&snapshot, code, drained);
    output::show(global.output, &effect, [format!("{service}/{code}")], |_| effect.sentence())?;
    Ok(ExitCode::SUCCESS)
}

/// `pointsman weight SERVICE CODE N` and `pointsman weight SERVICE CODE --reset`.
pub(crate) async fn weight(args: &Weight, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let (_, code) = find(&registry, &args.target).await?;
    let (service, code) = (&args.target.service, &*code);
    session::patiently(&registry, registry.set_weight(service, code, args.weight)).await?;
    session::close(registry).await;
    let name = format!("{service}/{code}");
    let sentence = match args.weight {
        Some(0) => format!("{name} has weight 0: it takes no new work"),
        Some(weight) => format!("{name} has weight {weight}"),
        None => format!("{name} has its registered weight"),
    };
    let data = json!({"service": service, "code": code, "weight": args.weight});
    output::show(global.output, &data, [name], |_| sentence)?;
    Ok(ExitCode::SUCCESS)
}

/// `pointsman resign SERVICE CODE`.
pub(crate) async fn resign(of: &OfInstance, global: &Global) -> Outcome {
    end(of, global, "has handed its mastership over", async |registry, service, code| {
        registry.resign(service, code).await
    })
    .await
}

/// `pointsman deregister SERVICE CODE`.
pub(crate) async fn deregister(of: &OfInstance, global: &Global) -> Outcome {
    end(of, global, "is deregistered", async |registry, service, code| registry.deregister(service, code).await).await
}

/// Ends something of an instance of which an agent keeps the registration; `ended` says what has come of it.
async fn end(
    of: &OfInstance,
    global: &Global,
    ended: &str,
    work: impl AsyncFn(&Registry, &str, &str) -> pointsman::Result<()>,
) -> Outcome {
    let registry = session::connect(global).await?;
    let OfInstance { service, code } = of;
    let snapshot = session::discover(&registry, service).await?.snapshot();
    session::check_readable(&snapshot)?;
    let code = codes::resolve(&snapshot, code, "")?;
    session::patiently(&registry, work(&registry, service, code)).await?;
    session::close(registry).await;
    let name = format!("{service}/{code}");
    let sentence = format!("{} {ended}", shown(&name));
    output::show(global.output, &json!({"service": service, "code": code}), [name], |_| sentence)?;
    Ok(ExitCode::SUCCESS)
}

/// `pointsman overrides [SERVICE]`.
pub(crate) async fn overrides(service: Option<&str>, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let all = session::patiently(&registry, registry.overrides(service)).await?;
    session::close(registry).await;
    let gone = all.iter().filter(|set| !set.registered).count();
    list(&all, global)?;
    if all.is_empty() {
        output::note("note: operators have set nothing");
    } else if gone > 0 {
        let days = OVERRIDES_KEPT.as_secs() / (24 * 60 * 60);
        output::note(&format!(
            "note: {gone} of codes that are not registered; each is cleared {days} days after it was last registered, or now by \
             `pointsman clear-overrides`"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// `pointsman clear-overrides [SERVICE]`: tells what was set.
pub(crate) async fn clear_overrides(service: Option<&str>, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let mut all = Vec::new();
    loop {
        let clearing = session::patiently(&registry, registry.clear_gone_overrides(service));
        let ClearedOverrides { mut cleared, remaining, .. } = clearing.await?;
        let is_done = remaining == 0 || cleared.is_empty();
        all.append(&mut cleared);
        if is_done {
            break;
        }
    }
    session::close(registry).await;
    list(&all, global)?;
    if all.is_empty() {
        output::note("note: nothing is set for codes that are not registered");
    }
    Ok(ExitCode::SUCCESS)
}

fn list(all: &[OverrideOf], global: &Global) -> Result<(), Failure> {
    let names = all.iter().map(|set| format!("{}/{}", set.service, set.code));
    Ok(output::show(global.output, &all, names, |_| table::overrides(all))?)
}

/// The service as it is before the change, and the code that is meant: it may be given as a prefix that is unique in the service. A mistyped
/// code would be drained in silence: with `--force` one that is not registered is taken as it is.
async fn find(registry: &Registry, target: &Target) -> Result<(Arc<Snapshot>, Arc<str>), Failure> {
    let snapshot = session::discover(registry, &target.service).await?.snapshot();
    if target.force || snapshot.find(&target.code).is_some() {
        let code = target.code.as_str().into();
        return Ok((snapshot, code));
    }
    session::check_readable(&snapshot)?;
    let code = codes::resolve(&snapshot, &target.code, " (--force sets it anyway)")?.into();
    Ok((snapshot, code))
}

/// What comes of a drain or of its end, as far as the service's snapshot tells.
#[derive(Debug, Serialize)]
struct Effect<'a> {
    service: &'a str,
    code: &'a str,
    drained: bool,
    registered: bool,
    /// Whether the instance takes new work now. `false` for one that is not registered.
    takes_work: bool,
    /// Of an instance that is registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    /// What becomes of the mastership, where a master is drained.
    #[serde(skip_serializing_if = "Option::is_none")]
    mastership: Option<Mastership>,
    /// How many other instances take work.
    others: usize,
}

/// What becomes of the mastership of an instance that is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mastership {
    /// It goes to another instance.
    Moves,
    /// It stays, as no other instance that may be master takes work.
    Stays,
}

impl<'a> Effect<'a> {
    fn new(snapshot: &'a Snapshot, code: &'a str, drained: bool) -> Self {
        let instance = snapshot.find(code);
        let can_work = |other: &&Arc<pointsman::ObservedInstance>| {
            *other.code != *code && other.takes_work() && !other.is_guarded()
        };
        let others = snapshot.instances().iter().filter(can_work).count();
        let candidates = snapshot.instances().iter().filter(can_work).filter(|other| !other.observer).count();
        let is_master = snapshot.master().is_some_and(|master| *master.code == *code);
        let mastership = if candidates > 0 { Mastership::Moves } else { Mastership::Stays };
        Self {
            service: snapshot.service(),
            code,
            drained,
            registered: instance.is_some(),
            takes_work: !drained && instance.is_some_and(|instance| instance.weight > 0),
            weight: instance.map(|instance| instance.weight),
            mastership: (drained && is_master).then_some(mastership),
            others,
        }
    }

    fn sentence(&self) -> String {
        let (service, code) = (shown(self.service), shown(self.code));
        let effect = match (self.drained, self.mastership, self.weight) {
            (true, Some(Mastership::Moves), _) => {
                "; it is the master: the mastership goes to another instance that can take work".to_owned()
            }
            (true, Some(Mastership::Stays), _) => {
                "; it is the master, and no other instance can take the mastership: it stays master".to_owned()
            }
            (true, None, Some(_)) if self.others == 0 => {
                ": it takes no new work, and no other instance can take any".to_owned()
            }
            (true, None, Some(_)) => ": it takes no new work".to_owned(),
            (false, _, Some(0)) => format!(
                ", but its weight is 0: it still takes no work, until `pointsman weight {service} {code} 1` or more gives it some"
            ),
            (false, _, Some(_)) => ": it takes work again".to_owned(),
            (true, None, None) => "; it is not registered now: it takes no work when it is".to_owned(),
            (false, _, None) => "; it is not registered now".to_owned(),
        };
        let word = if self.drained { "drained" } else { "undrained" };
        format!("{service}/{code} {word}{effect}")
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use pointsman::{Instance, ObservedInstance, Role, Term};

    use super::*;

    fn instance(code: &str, role: Role, weight: u32) -> ObservedInstance {
        ObservedInstance::new(Instance::with_code("ress", code).weight(weight), role)
    }

    fn service(instances: impl IntoIterator<Item = ObservedInstance>) -> Snapshot {
        Snapshot::new("ress", 1, instances.into_iter().map(Arc::new).collect())
    }

    #[test]
    fn a_drain_says_what_becomes_of_work_and_mastership() {
        let (master, normal) = (instance("a", Role::Master(Term(1)), 1), instance("b", Role::Normal, 1));
        let both = service([master.clone(), normal.clone()]);
        let says = |snapshot: &Snapshot, code: &str| Effect::new(snapshot, code, true).sentence();
        assert_eq!(
            says(&both, "a"),
            "ress/a drained; it is the master: the mastership goes to another instance that can take work"
        );
        assert_eq!(says(&both, "b"), "ress/b drained: it takes no new work");
        assert_eq!(says(&both, "x"), "ress/x drained; it is not registered now: it takes no work when it is");
        let stays = "ress/a drained; it is the master, and no other instance can take the mastership: it stays master";
        assert_eq!(says(&service([master.clone()]), "a"), stays);
        let mut guarded = normal.clone();
        guarded.guarded_since = Some(SystemTime::now());
        let mut observer = normal.clone();
        observer.observer = true;
        for other in [instance("b", Role::Normal, 0), guarded, observer] {
            assert_eq!(says(&service([master.clone(), other]), "a"), stays);
        }
        assert_eq!(
            says(&service([normal]), "b"),
            "ress/b drained: it takes no new work, and no other instance can take any"
        );
    }

    #[test]
    fn the_end_of_a_drain_says_whether_there_is_work_again() {
        let there = service([instance("a", Role::Normal, 1), instance("b", Role::Normal, 0)]);
        let says = |code: &str| Effect::new(&there, code, false).sentence();
        assert_eq!(says("a"), "ress/a undrained: it takes work again");
        assert_eq!(
            says("b"),
            "ress/b undrained, but its weight is 0: it still takes no work, until `pointsman weight ress b 1` or more gives it some"
        );
        assert_eq!(says("x"), "ress/x undrained; it is not registered now");
    }
}
