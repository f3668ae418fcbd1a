//! The drained stand last in line for the mastership: they let others go first, and hand it on where another can take it.
//!
//! Each normal node of an instance that is not drained gets a chance from each that is, and another one after a while: a process that
//! hangs, or a node that nobody serves, must not let the mastership go round for ever; and an instance that was cut off when it had its
//! chance must not be passed over for ever. See [`Chances`].

use std::collections::HashMap;
use std::time::Duration;

use pointsman_core::{Instance, Role};
use tokio::time::Instant;
use zookeeper_client::{Error as ZkError, OneshotWatcher};

use super::super::fault::Fault;
use super::super::layout::number;
use super::super::place::{Folder, Place, read_many};
use super::super::session::Session;
use super::super::upkeep;
use super::{Out, ZooKeeperRegistrar};
use crate::keep::Control;
use crate::overrides::Override;

/// Whether an operator lets an instance take no work.
pub(super) fn is_drained(instance: &Instance, set: Override) -> bool {
    !set.lets_work(instance)
}

/// What an operator has set for an instance, and a watch on it. Where it may not be read it counts as not drained: whoever is not known to be
/// drained takes a mastership, and directories tell that it cannot be read. One that is older than `own`, the transaction that has created the
/// own node, is written anew, so that it does not expire.
pub(super) async fn watch_override(
    session: &Session,
    path: &str,
    own: i64,
) -> Result<(Override, Option<OneshotWatcher>), Fault> {
    let client = &session.client;
    loop {
        match session.run(|| format!("read {path}"), client.get_and_watch_data(path)).await {
            Ok((data, stat, watcher)) => {
                if stat.mzxid < own {
                    upkeep::refresh(session, path, &data, stat.version).await;
                }
                return Ok((serde_json::from_slice(&data).unwrap_or_default(), Some(watcher)));
            }
            Err(fault) if fault.is_refusal() => {
                tracing::warn!(%fault, "not known whether this instance is drained: taken as not");
                return Ok((Override::default(), None));
            }
            Err(fault) if fault.error != ZkError::NoNode => return Err(fault),
            Err(_) => {}
        }
        let (stat, watcher) = session.run(|| format!("watch {path}"), client.check_and_watch_stat(path)).await?;
        if stat.is_none() {
            return Ok((Override::default(), Some(watcher)));
        }
    }
}

/// Session timeouts until a node that has done nothing with its first chance gets the second one. Each chance that is not taken leaves the
/// service without a master for half a session timeout or a little more.
const FIRST_PAUSE: u32 = 4;
/// Maximum number of session timeouts between two chances of one node.
const LONGEST_PAUSE: u32 = 64;
/// Interval at which a drained master looks whether another is drained no longer. No watch tells of all that can change it: the settings of
/// operators, and what each instance says of itself.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The chances that other nodes have had to become master, because this instance is drained.
#[derive(Debug, Default)]
pub(super) struct Chances {
    by_node: HashMap<String, Chance>,
}

#[derive(Debug)]
struct Chance {
    last: Instant,
    pause: u32,
}

impl Chances {
    /// Forgets all of them: the instance is not drained.
    pub(super) fn clear(&mut self) {
        self.by_node.clear();
    }

    /// Takes in that every node that is known has just had a chance again, and has not taken it.
    pub(super) fn missed(&mut self, now: Instant) {
        for chance in self.by_node.values_mut() {
            chance.last = now;
        }
    }

    /// Takes in which nodes there are. Gives all of them a chance, if it is time for one of them; or returns when it is, if there are any.
    fn give(&mut self, nodes: &[String], now: Instant, session_timeout: Duration) -> Result<(), Option<Instant>> {
        self.by_node.retain(|name, _| nodes.contains(name));
        if self.by_node.len() == nodes.len() {
            let next = self.by_node.values().map(|chance| chance.last + session_timeout * chance.pause).min();
            if next.is_none_or(|next| next > now) {
                return Err(next);
            }
        }
        for name in nodes {
            let again = |chance: &mut Chance| {
                *chance = Chance { last: now, pause: (chance.pause * 2).min(LONGEST_PAUSE) };
            };
            let first = Chance { last: now, pause: FIRST_PAUSE };
            self.by_node.entry(name.clone()).and_modify(again).or_insert(first);
        }
        Ok(())
    }
}

/// The normal nodes of other instances.
struct Others {
    undrained: Vec<String>,
    /// Whether there are drained ones as well.
    any_drained: bool,
}

impl ZooKeeperRegistrar {
    /// Goes to the end of the queue, if there is another who is not drained, and whose time for a chance has come. Whether it did; what to
    /// wait for otherwise is added to the watches, and when to look again is noted.
    pub(super) async fn let_others_go_first(
        &mut self,
        control: &mut Control,
        folder: &Folder<'_>,
        place: &Place,
        watches: &mut Vec<OneshotWatcher>,
    ) -> Result<bool, Out> {
        let others = self.others(control.wanted().0, folder, watches).await?;
        let now = Instant::now();
        if let Err(next) = self.chances.give(&others.undrained, now, folder.session.timeout()) {
            let look = others.any_drained.then(|| now + LOOK_INTERVAL);
            self.look_again = next.into_iter().chain(look).min();
            return Ok(false);
        }
        let Instance { service, code, .. } = control.wanted().0;
        tracing::info!(%service, %code, role = %place.role(), "drained: another goes first");
        if place.role() != Role::Normal {
            // Before it is asked for: the next one may be master before we have the answer.
            control.step_down("drained: handing the mastership on");
        }
        self.move_back(control, folder, place).await?;
        Ok(true)
    }

    async fn others(
        &self,
        own: &Instance,
        folder: &Folder<'_>,
        watches: &mut Vec<OneshotWatcher>,
    ) -> Result<Others, Fault> {
        watches.extend(folder.watch_names().await?);
        // Tells of most that operators change at once, and costs one request however many settings there are.
        match (Folder { path: &self.overrides, ..*folder }.watch_names().await) {
            // What else can be read is looked at all the same, and again before long.
            Err(fault) if fault.is_refusal() => tracing::warn!(%fault, "not told of what operators set"),
            watcher => watches.extend(watcher?),
        }
        let mut instances = folder.instances(&own.service).await?;
        instances.retain(|(name, instance)| number(name).is_some() && instance.code != own.code);
        let paths = instances.iter().map(|(_, instance)| format!("{}/{}", self.overrides, instance.code));
        let set = read_many(folder.session, &self.overrides, &Vec::from_iter(paths)).await?;
        let mut others = Others { undrained: Vec::new(), any_drained: false };
        for ((name, instance), set) in instances.into_iter().zip(set) {
            let set = set.unwrap_or_else(|fault| {
                tracing::warn!(%fault, "not known whether this instance is drained: taken as not");
                None
            });
            let set = set.and_then(|(data, _)| serde_json::from_slice(&data).ok()).unwrap_or_default();
            if is_drained(&instance, set) {
                others.any_drained = true;
            } else {
                others.undrained.push(name);
            }
        }
        Ok(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_another_chance_after_pauses_that_grow_to_a_bound() {
        let (timeout, start) = (Duration::from_secs(1), Instant::now());
        let nodes = ["n1".to_owned(), "n2".to_owned()];
        let mut chances = Chances::default();
        assert_eq!(chances.give(&[], start, timeout), Err(None), "there is nobody to let go first");
        let (mut now, mut pauses) = (start, Vec::new());
        assert_eq!(chances.give(&nodes, now, timeout), Ok(()));
        for _ in 0..6 {
            let next = chances.give(&nodes, now, timeout).unwrap_err().unwrap();
            pauses.push((next - now).as_secs());
            now = next;
            assert_eq!(chances.give(&nodes, now, timeout), Ok(()));
        }
        assert_eq!(pauses, [4, 8, 16, 32, 64, 64]);
        let later = now + timeout;
        chances.missed(later);
        assert_eq!(chances.give(&nodes, later, timeout), Err(Some(later + timeout * 64)));
    }

    #[test]
    fn a_newcomer_gets_its_chance_at_once_and_whoever_is_gone_is_forgotten() {
        let (timeout, now) = (Duration::from_secs(1), Instant::now());
        let [old, new] = ["old".to_owned(), "new".to_owned()];
        let mut chances = Chances::default();
        assert_eq!(chances.give(std::slice::from_ref(&old), now, timeout), Ok(()));
        assert_eq!(chances.give(&[old.clone(), new.clone()], now, timeout), Ok(()));
        assert_eq!(chances.give(std::slice::from_ref(&new), now, timeout), Err(Some(now + timeout * 4)));
        assert_eq!(chances.by_node.len(), 1);
    }
}
