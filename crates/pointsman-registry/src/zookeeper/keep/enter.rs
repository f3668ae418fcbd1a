//! How an instance comes by its place: the one it has already, or a new one.

use pointsman_core::Instance;
use tokio::time::Instant;

use super::super::fault::Fault;
use super::super::layout::MASTER;
use super::super::place::{Folder, Found, Place, any_normal};
use super::super::session::left;
use super::{Out, ZooKeeperRegistrar, take_idle};
use crate::Error;
use crate::keep::{Control, Said};

impl ZooKeeperRegistrar {
    /// Finds the node of ours that exists already; removes ghosts; waits for a stranger with our code to go.
    pub(super) async fn find_own(&mut self, control: &mut Control, folder: &Folder<'_>) -> Result<Option<Place>, Out> {
        let Instance { service, code, .. } = control.wanted().0.clone();
        while self.must_look {
            let session = folder.session.id();
            let found = folder.find(&service, &code).await?;
            let (mut own, others): (Vec<Found>, Vec<Found>) =
                found.into_iter().partition(|f| f.place.session == session && self.is_mine(f));
            let (ghosts, strangers): (Vec<Found>, Vec<Found>) =
                others.into_iter().partition(|f| self.sessions.contains(&f.place.session) && self.is_mine(f));
            // A ghost that is master is left to its session's end: to delete it by name could hit its successor.
            for ghost in ghosts.iter().filter(|ghost| ghost.place.name != MASTER) {
                folder.delete(&ghost.place.name).await?;
            }
            let (mates, strangers): (Vec<Found>, Vec<Found>) =
                strangers.into_iter().partition(|found| self.is_same_holder(found));
            if let Some(mate) = mates.into_iter().max_by_key(|mate| mate.place.czxid) {
                match self.meet(control, folder, &own, &mate).await? {
                    Some(place) => return Ok(Some(place)),
                    None => continue,
                }
            }
            // A stranger that came later than ours is the one to give way.
            let oldest_own = own.iter().map(|found| found.place.czxid).min().unwrap_or(i64::MAX);
            if let Some(stranger) = strangers.into_iter().find(|stranger| stranger.place.czxid < oldest_own) {
                for found in own {
                    folder.delete(&found.place.name).await?;
                }
                self.outwait(control, folder, stranger).await?;
                continue;
            }
            self.must_look = false;
            own.sort_by_key(|found| (found.place.name != MASTER, found.place.czxid));
            let mut own = own.into_iter();
            let first = own.next();
            for double in own {
                folder.delete(&double.place.name).await?;
            }
            return Ok(first.map(|found| found.place));
        }
        Ok(None)
    }

    /// Whether a node, in a session of ours, is of this registration.
    pub(super) fn is_mine(&self, found: &Found) -> bool {
        found.holder == self.holder
    }

    fn is_same_holder(&self, found: &Found) -> bool {
        let names = (self.holder.as_ref().map(|own| &own.name), found.holder.as_ref().map(|other| &other.name));
        matches!(names, (Some(own), Some(other)) if own == other)
    }

    /// The same holder has registered it by another registration. Whoever comes takes over; whoever has been registered already
    /// was taken over from, and gives way: so two that live never fight. If both have a node, because neither saw the
    /// other's when it created its own, the newer stays. `None` if everything is to be looked at again.
    async fn meet(
        &mut self,
        control: &mut Control,
        folder: &Folder<'_>,
        own: &[Found],
        mate: &Found,
    ) -> Result<Option<Place>, Out> {
        let newest = own.iter().map(|found| found.place.czxid).max();
        if newest.map_or(!control.is_entering(), |newest| newest < mate.place.czxid) {
            for found in own {
                folder.delete_own(&found.place).await?;
            }
            return Err(Out::Said(Said::Replaced));
        }
        if newest.is_some() {
            folder.delete_own(&mate.place).await?;
            return Ok(None);
        }
        let Instance { service, code, .. } = control.wanted().0;
        tracing::info!(%service, %code, from = mate.who, "taken over from the same holder");
        // From here until the place is known, a node may exist that we have no reply for.
        self.sessions.insert(folder.session.id());
        control.say(Said::Requested);
        let (data, _) = self.data(control, folder.inherited(&mate.place));
        let place = folder.replace(&mate.place, &data).await?;
        if place.is_some() {
            self.must_look = false;
            self.just_created = true;
        }
        Ok(place)
    }

    /// Waits until a stranger's node is gone: it may be of a process that died a moment ago, perhaps of our own
    /// predecessor. Half as long again as its session can last, then it must be alive.
    async fn outwait(&mut self, control: &mut Control, folder: &Folder<'_>, stranger: Found) -> Result<(), Out> {
        if self.outwaiting.is_some_and(|(session, _)| session != stranger.place.session) {
            self.outwaiting = None;
        }
        let (exists, gone) = folder.watch(&stranger.place.name).await?;
        if !exists {
            return Ok(());
        }
        let Instance { service, code, .. } = control.wanted().0.clone();
        control.say(Said::Waits(format!(
            "the code is registered already, by {}; if that process has died, its session ends soon and this one follows",
            stranger.who
        )));
        let longest = stranger.session_timeout.unwrap_or_default().max(folder.session.timeout());
        // One deadline a session, however often its node changes meanwhile.
        let owner = stranger.place.session;
        let (_, until) = *self.outwaiting.get_or_insert((owner, Instant::now() + longest * 3 / 2));
        let mut gone = std::pin::pin!(gone.changed());
        loop {
            tokio::select! {
                _ = &mut gone => return Ok(()),
                () = tokio::time::sleep_until(until) => break,
                () = left(&mut self.link, folder.session) => return Err(Out::disconnected()),
                order = control.order() => take_idle(control, order)?,
            }
        }
        self.outwaiting = None;
        Err(Error::DuplicateCode { service, code, holder: stranger.who }.into())
    }

    /// Creates the own node: as master if the service has nobody else, or else at the end of the queue.
    pub(super) async fn create(&mut self, control: &mut Control, folder: &Folder<'_>) -> Result<Place, Out> {
        let creating = folder.session.creating();
        let (data, _) = self.data(control, None);
        self.sessions.insert(folder.session.id());
        // From here until the place is known, a node may exist that we have no reply for.
        control.say(Said::Requested);
        self.must_look = true;
        for _ in 0..CREATE_ATTEMPTS {
            let Some(place) = self.create_once(folder, &data).await? else {
                folder.make().await?;
                continue;
            };
            self.must_look = false;
            self.just_created = true;
            drop(creating);
            if self.is_shared {
                // Another process with the same code may have looked when we did.
                self.must_look = true;
                let own = self.find_own(control, folder).await?;
                return own.ok_or_else(|| Out::gone("the own node vanished while it was created"));
            }
            return Ok(place);
        }
        let step = control.name("register");
        Err(Error::unavailable(step, "the service's folder keeps vanishing".to_owned()).into())
    }

    /// `None` if there is no folder.
    async fn create_once(&self, folder: &Folder<'_>, data: &[u8]) -> Result<Option<Place>, Fault> {
        if self.observer {
            return folder.create_normal(data).await;
        }
        if let Some(place) = folder.create_behind_master(data).await? {
            return Ok(Some(place));
        }
        // Whoever waits in the queue already comes first.
        if !any_normal(&folder.names().await?)
            && let Some(place) = folder.create_master(data).await?
        {
            return Ok(Some(place));
        }
        folder.create_normal(data).await
    }
}

/// A folder may be deleted between its creation and that of the node in it; so often in a row only on purpose.
const CREATE_ATTEMPTS: usize = 8;
