//! The drained stand last in line for the mastership: they let others go first, and hand it on where another can take it.
//!
//! Each normal node of an instance that is not drained gets one chance from each that is: a process that hangs, or a node that nobody
//! serves, must not let the mastership go round for ever.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use pointsman_core::{Instance, Role};
use zookeeper_client::{Error as ZkError, OneshotWatcher};

use super::super::fault::Fault;
use super::super::layout::number;
use super::super::place::{Folder, Place};
use super::super::session::Session;
use super::{Keeper, Out};
use crate::overrides::Override;

/// Whether an operator lets an instance take no work.
pub(super) fn is_drained(instance: &Instance, set: Override) -> bool {
    !set.apply(Arc::new(instance.clone())).takes_work()
}

/// What an operator has set for an instance, and a watch on it. Where it cannot be read nothing is set.
pub(super) async fn watch_override(session: &Session, path: &str) -> Result<(Override, Option<OneshotWatcher>), Fault> {
    let client = &session.client;
    loop {
        match session.run(|| format!("read {path}"), client.get_and_watch_data(path)).await {
            Ok((data, _, watcher)) => return Ok((serde_json::from_slice(&data).unwrap_or_default(), Some(watcher))),
            Err(fault) if fault.is_refusal() => return Ok((Override::default(), None)),
            Err(fault) if fault.error != ZkError::NoNode => return Err(fault),
            Err(_) => {}
        }
        let (stat, watcher) = session.run(|| format!("watch {path}"), client.check_and_watch_stat(path)).await?;
        if stat.is_none() {
            return Ok((Override::default(), Some(watcher)));
        }
    }
}

impl Keeper {
    /// Goes to the end of the queue, if there is another who is not drained, and has not had a chance yet. Whether it did; what to
    /// wait for otherwise is added to the watches.
    pub(super) async fn let_others_go_first(
        &mut self,
        folder: &Folder<'_>,
        place: &Place,
        watches: &mut Vec<OneshotWatcher>,
    ) -> Result<bool, Out> {
        let others = self.undrained(folder, watches).await?;
        if others.is_subset(&self.passed) {
            return Ok(false);
        }
        self.passed.extend(others);
        let (service, code) = (&self.instance.service, &self.instance.code);
        tracing::info!(%service, %code, role = %place.role(), "drained: another goes first");
        if place.role() != Role::Normal {
            // Before it is asked for: the next one may be master before we have the answer.
            self.report.step_down("drained: handing the mastership on");
        }
        self.move_back(folder, place).await?;
        Ok(true)
    }

    /// The normal nodes of other instances that are not drained.
    async fn undrained(
        &self,
        folder: &Folder<'_>,
        watches: &mut Vec<OneshotWatcher>,
    ) -> Result<HashSet<String>, Fault> {
        let set = self.all_overrides(folder.session, watches).await?;
        watches.extend(folder.watch_names().await?);
        let instances = folder.instances(&self.instance.service).await?;
        let others = instances.into_iter().filter(|(name, instance)| {
            let set = set.get(&instance.code).copied().unwrap_or_default();
            number(name).is_some() && instance.code != self.instance.code && !is_drained(instance, set)
        });
        Ok(others.map(|(name, _)| name).collect())
    }

    /// What operators have set for the instances of the service.
    async fn all_overrides(
        &self,
        session: &Session,
        watches: &mut Vec<OneshotWatcher>,
    ) -> Result<HashMap<Arc<str>, Override>, Fault> {
        let (folder, client) = (&self.overrides, &session.client);
        let (codes, _, watch) =
            match session.run(|| format!("list {folder}"), client.get_and_watch_children(folder)).await {
                Ok(listed) => listed,
                Err(fault) if fault.error == ZkError::NoNode => return Ok(HashMap::new()),
                Err(fault) => return Err(fault),
            };
        watches.push(watch);
        let mut all = HashMap::new();
        for code in codes {
            let path = format!("{folder}/{code}");
            match session.run(|| format!("read {path}"), client.get_data(&path)).await {
                Ok((data, _)) => {
                    all.insert(code.into(), serde_json::from_slice(&data).unwrap_or_default());
                }
                Err(fault) if fault.error == ZkError::NoNode => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(all)
    }
}
