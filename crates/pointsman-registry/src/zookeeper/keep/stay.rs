//! Rounds of looking at everything, while a node of the instance is there.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pointsman_core::{Instance, Role};
use tokio::time::Instant;
use zookeeper_client::{EventType, OneshotWatcher};

use super::super::place::{Folder, Place, Promotion};
use super::super::session::{Session, left};
use super::queue::Ahead;
use super::{Out, ZooKeeperRegistrar, drain, grace, take_idle};
use crate::keep::{Control, Order, Said};
use crate::registration::Reply;

impl ZooKeeperRegistrar {
    /// One round: everything is looked at, then the next event is waited for.
    pub(super) async fn stay(&mut self, control: &mut Control, folder: &Folder<'_>) -> Result<(), Out> {
        let Some(place) = self.place.clone() else { return Err(Out::gone("the own node is not known")) };
        let round = folder.session.round(std::mem::take(&mut self.just_created)).await;
        let overridden = format!("{}/{}", self.overrides, control.wanted().0.code);
        let looking = drain::watch_override(folder.session, &overridden, place.czxid);
        let (own, overridden) = tokio::join!(self.own(control, folder, &place), looking);
        let (own, (set, watch)) = (own?, overridden?);
        let mut watches = Vec::from_iter(watch);
        let is_drained = drain::is_drained(control.wanted().0, set);
        if !is_drained {
            self.chances.clear();
        }
        self.look_again = None;
        let ahead = match place.role() {
            // It waits for nothing: the mastership is not for it.
            Role::Normal if self.observer => None,
            Role::Normal => self.ahead(folder, &place, is_drained).await?,
            Role::Master(_)
                if is_drained && self.let_others_go_first(control, folder, &place, &mut watches).await? =>
            {
                return Ok(());
            }
            Role::Master(_) | Role::Detached => None,
        };
        match ahead {
            Some(Ahead::Moved) => return Ok(()),
            Some(Ahead::Nobody) => {
                // Whoever passes others over has waited for long enough.
                let passes_over = self.queue.vacant_since.is_some();
                if passes_over {
                    self.chances.missed(Instant::now());
                } else if is_drained && self.let_others_go_first(control, folder, &place, &mut watches).await? {
                    return Ok(());
                }
                return self.promote(control, folder, &place).await;
            }
            Some(Ahead::Watch(more)) => watches.extend(more),
            None => {}
        }
        drop(round);
        control.registered(place.role(), Some(folder.session.lease.clone()));
        self.wait(control, folder, &place, own, watches).await
    }

    /// Checks that the own node is there, is ours, and says what it should; mends it if it does not.
    async fn own(&mut self, control: &mut Control, folder: &Folder<'_>, place: &Place) -> Result<OneshotWatcher, Out> {
        loop {
            let Some((data, stat, watcher)) = folder.watch_data(&place.name).await? else {
                return Err(Out::gone("the own node was deleted"));
            };
            if stat.ephemeral_owner != place.session || stat.czxid != place.czxid {
                return Err(Out::gone("the own node was replaced by another's"));
            }
            let (wanted, revision) = self.data(control, place.inherited);
            if data == wanted {
                self.written = Some(revision);
                control.say(Said::Written(revision));
                return Ok(watcher);
            }
            if self.written == Some(revision) {
                let Instance { service, code, .. } = control.wanted().0;
                tracing::warn!(%service, %code, node = place.name, "the own node was changed by somebody: restored");
            }
            drop(watcher);
            folder.write(&place.name, &wanted, stat.version).await?;
        }
    }

    async fn promote(&mut self, control: &mut Control, folder: &Folder<'_>, place: &Place) -> Result<(), Out> {
        match folder.promote(&place.name, &self.data(control, None).0).await? {
            Promotion::Won(place) => {
                self.queue.vacant_since = None;
                control.registered(place.role(), Some(folder.session.lease.clone()));
                self.place = Some(place);
                Ok(())
            }
            Promotion::Lost => Ok(()),
            Promotion::Gone => Err(Out::gone("the own node was deleted")),
        }
    }

    async fn wait(
        &mut self,
        control: &mut Control,
        folder: &Folder<'_>,
        place: &Place,
        own: OneshotWatcher,
        watches: Vec<OneshotWatcher>,
    ) -> Result<(), Out> {
        let session = folder.session;
        let next_audit = self.next_audit(session);
        let mut watches: FuturesUnordered<_> = watches.into_iter().map(OneshotWatcher::changed).collect();
        tokio::select! {
            event = own.changed() => match event.event_type {
                EventType::NodeDeleted => Err(Out::gone("the own node was deleted")),
                _ => Ok(()),
            },
            Some(_) = watches.next() => Ok(()),
            () = left(&mut self.link, session) => Err(Out::disconnected()),
            () = session.lease.ended() => self.lapsed(control, session).await,
            () = tokio::time::sleep(next_audit) => Ok(()),
            order = control.order() => match order {
                Order::Resign(reply) if place.role().is_master() => self.resign(control, folder, place, reply).await,
                order => take_idle(control, order),
            }
        }
    }

    /// No heartbeat has come back in time: detached, until one does.
    async fn lapsed(&mut self, control: &mut Control, session: &Session) -> Result<(), Out> {
        control.say(Said::Lapsed("no heartbeat from the registry in time".to_owned()));
        tokio::select! {
            () = session.lease.held() => Ok(()),
            () = left(&mut self.link, session) => Err(Out::disconnected()),
            order = control.order() => take_idle(control, order),
        }
    }

    /// When to look at everything again although nothing has happened; sooner while the mastership is vacant, or may be handed on.
    fn next_audit(&self, session: &Session) -> Duration {
        let audit = match self.queue.vacant_since {
            // Spread, so that those who wait do not all try at once; stand-bys wait for different times anyway.
            Some(since) => {
                let spread = session.timeout().mul_f64(fastrand::f64() / 4.0);
                let spread = if self.queue.patience < grace(session) { Duration::ZERO } else { spread };
                (self.queue.patience + spread).saturating_sub(since.elapsed())
            }
            None => session.timeout() + session.timeout().mul_f64(fastrand::f64()),
        };
        let look = self.look_again.map(|at| at.saturating_duration_since(Instant::now()));
        look.map_or(audit, |look| look.min(audit))
    }

    async fn resign(
        &mut self,
        control: &mut Control,
        folder: &Folder<'_>,
        place: &Place,
        reply: Reply,
    ) -> Result<(), Out> {
        // Before it is asked for: the next one may be master before we have the answer.
        control.step_down("resigning");
        let moved = self.move_back(control, folder, place).await;
        let _ = reply.send(match &moved {
            Err(Out::Said(Said::Failed(error))) => Err(error.clone()),
            Err(_) => Err(control.not_master()),
            Ok(()) => Ok(()),
        });
        moved
    }

    /// Moves to the end of the queue.
    pub(super) async fn move_back(
        &mut self,
        control: &mut Control,
        folder: &Folder<'_>,
        place: &Place,
    ) -> Result<(), Out> {
        match folder.demote(place, &self.data(control, None).0).await {
            Ok(Some(place)) => {
                control.registered(place.role(), Some(folder.session.lease.clone()));
                self.place = Some(place);
                Ok(())
            }
            Ok(None) => Err(Out::gone("the own node was deleted")),
            Err(fault) => {
                // The transaction may have been carried out: look for the place anew.
                self.place = None;
                Err(fault.into())
            }
        }
    }
}
