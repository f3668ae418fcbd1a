//! A relay among those of its group: its code, whether it is alone, and what it takes over from those that are gone.
//!
//! A registered relay may have a session at the broker, and one that is not registered any more may have left one. So a relay claims its code
//! before it connects; whoever has the least code of those that are registered takes over the sessions of those that are gone; and only where
//! nobody else is registered, and nothing is to be taken over, a relay subscribes plainly instead of sharing the messages of its group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::{ObservedInstance, Role, Snapshot};
use pointsman_mqtt::relay::{self, Settings, Sharing, Views};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::{Error, Instance, Registration, Registry, Service};

/// The tag of a relay that gets every message, or is about to. Another one is to wait until it is gone.
const SUBSCRIBED: &str = "subscribed";
/// Its value while the subscriptions change, and afterwards.
const CHANGING: &str = "changing";
const ALONE: &str = "alone";
/// A relay that is guarded counts as one that is registered until this one has been registered for so long: where the registry has lost all, the
/// others are about to register anew as well.
const DOUBT: Duration = Duration::from_secs(5);
/// How long a relay that starts waits for one that is alone to share the messages.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the registry may take to register the code of a slot that looked free before the next one is tried.
const SLOT_PATIENCE: Duration = Duration::from_secs(2);
/// Time before the sessions of a relay that is gone are taken over: one that is started again with its code has registered by then, and takes
/// them up itself. Requests that are under way would not survive that.
const GRACE: Duration = Duration::from_secs(2);
/// Time until a change is tried again that the registry or the broker has not confirmed.
const PAUSE: Duration = Duration::from_secs(1);
/// Maximum number of slots.
const SLOTS: usize = 10_000;
/// So many slots in a row without a session are the last ones: the relay that ended last may have had a higher slot than those that ended
/// before it.
const EMPTY_SLOTS: usize = 16;

/// Registers a relay, with its code or that of the first free slot, before it has touched a broker. It is not to be found by clients yet.
/// Sets the code in the settings.
pub(super) async fn claim(
    registry: &Registry,
    relays: &Service,
    instance: &Instance,
    settings: &mut Settings,
) -> Result<Registration, Error> {
    let claim = |code: Arc<str>| {
        let mut claim = instance.clone().code(code);
        claim.weight = 0;
        registry.register(claim)
    };
    if let Some(code) = &settings.code {
        return claim(code.clone()).await;
    }
    let snapshot = relays.snapshot();
    let codes = (0..SLOTS).map(|slot| settings.code_of_slot(slot)).filter(|code| snapshot.find(code).is_none());
    for code in codes.collect::<Vec<_>>() {
        match timeout(SLOT_PATIENCE, claim(code.clone())).await {
            Ok(Ok(registration)) => {
                settings.code = Some(code);
                return Ok(registration);
            }
            // Another relay was faster, or the registration of one that is gone has not ended.
            Ok(Err(Error::DuplicateCode { .. })) | Err(_) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
    Err(Error::unavailable("register the relay".to_owned(), format!("{SLOTS} relays are registered already")))
}

/// Waits until no other relay gets every message.
pub(super) async fn until_shared(relays: &Service, own: &str) {
    let shared = |snapshot: &Snapshot| {
        let mut others = snapshot.instances().iter().filter(|relay| *relay.code != *own && !relay.is_guarded());
        !others.any(|relay| relay.tags.contains_key(SUBSCRIBED))
    };
    if timeout(PATIENCE, relays.wait_for(shared)).await.is_err() {
        tracing::warn!("another relay does not share its messages: until it does, some come twice");
    }
}

/// What a relay does as a member of its group, as long as it runs.
pub(super) struct Member {
    pub(super) relays: Service,
    pub(super) registration: Arc<Registration>,
    pub(super) sharing: Sharing,
    /// Its own settings and the instances of all services, as they change.
    pub(super) current: watch::Receiver<(Settings, Views)>,
    pub(super) changed: watch::Receiver<()>,
    /// Relays that were registered when last looked.
    known: BTreeSet<Arc<str>>,
    /// Relays that are gone, and may have left a session; and since when.
    gone: BTreeMap<Arc<str>, Instant>,
    inheriting: JoinSet<()>,
    is_alone: bool,
    /// Since when it is registered without a break, as far as it knows.
    registered_since: Option<Instant>,
}

impl Member {
    /// `is_in_slot`: its code is that of a slot. Then those of other slots that are not registered may have left a session.
    pub(super) fn new(
        (relays, registration, sharing): (Service, Arc<Registration>, Sharing),
        current: watch::Receiver<(Settings, Views)>,
        changed: watch::Receiver<()>,
        is_in_slot: bool,
    ) -> Self {
        let mut member = Self {
            relays,
            registration,
            sharing,
            current,
            changed,
            known: BTreeSet::new(),
            gone: BTreeMap::new(),
            inheriting: JoinSet::new(),
            is_alone: false,
            registered_since: None,
        };
        if is_in_slot {
            member.look_into_slots();
        }
        member
    }

    /// Runs until the registry is closed.
    pub(super) async fn run(mut self) {
        let mut changes = self.relays.changes();
        loop {
            let is_settled = self.look().await;
            tokio::select! {
                change = changes.next() => if change.is_none() { return },
                Some(_) = self.inheriting.join_next() => {}
                () = sleep(PAUSE), if !is_settled => {}
            }
        }
    }

    /// Does what is to be done as things are. Whether that is done.
    async fn look(&mut self) -> bool {
        self.registered_since = match self.registration.role() {
            Role::Detached => None,
            _ => self.registered_since.or_else(|| Some(Instant::now())),
        };
        let others = self.others();
        let now = Instant::now();
        self.gone.extend(self.known.difference(&others).map(|code| (code.clone(), now)));
        self.gone.retain(|code, _| !others.contains(code));
        self.known = others;
        let own = self.own();
        if self.known.iter().all(|other| own < *other) {
            let is_due = |since: &Instant| now.duration_since(*since) >= GRACE;
            let due: Vec<_> =
                self.gone.iter().filter(|(_, since)| is_due(since)).map(|(code, _)| code.clone()).collect();
            for code in due {
                self.gone.remove(&code);
                self.inherit(code);
            }
        }
        let wants_alone = self.known.is_empty() && self.gone.is_empty() && self.inheriting.is_empty();
        if wants_alone == self.is_alone {
            // Whether one that is guarded counts changes with time.
            return self.gone.is_empty() && !self.relays.snapshot().is_guarded();
        }
        let changed = if wants_alone { self.be_alone().await } else { self.share().await };
        match changed {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "how messages are subscribed to cannot be changed now");
                false
            }
        }
    }

    fn own(&self) -> Arc<str> {
        self.registration.instance().code.clone()
    }

    fn others(&self) -> BTreeSet<Arc<str>> {
        let (own, snapshot) = (self.own(), self.relays.snapshot());
        let is_sure = self.registered_since.is_some_and(|since| since.elapsed() >= DOUBT);
        let counts = |relay: &&Arc<ObservedInstance>| relay.code != own && !(relay.is_guarded() && is_sure);
        snapshot.instances().iter().filter(counts).map(|relay| relay.code.clone()).collect()
    }

    /// First it says so, so that whoever comes waits; whoever has come meanwhile is seen before messages come plainly.
    async fn be_alone(&mut self) -> Result<(), String> {
        self.tell(Some(CHANGING)).await?;
        self.is_alone = true;
        if !self.others().is_empty() {
            return self.share().await;
        }
        tracing::info!("alone in its group: subscribes to all messages");
        self.sharing.share(false).await.map_err(|error| error.to_string())?;
        self.tell(Some(ALONE)).await
    }

    async fn share(&mut self) -> Result<(), String> {
        self.sharing.share(true).await.map_err(|error| error.to_string())?;
        tracing::info!("shares the messages with the others of its group");
        self.tell(None).await?;
        self.is_alone = false;
        Ok(())
    }

    /// Tells the others how it is subscribed.
    async fn tell(&self, how: Option<&'static str>) -> Result<(), String> {
        let told = self.registration.update(move |relay| match how {
            Some(how) => drop(relay.tags.insert(SUBSCRIBED.to_owned(), how.to_owned())),
            None => drop(relay.tags.remove(SUBSCRIBED)),
        });
        told.await.map_err(|error| error.to_string())
    }

    /// Takes over what the broker has kept for a relay that is gone.
    fn inherit(&mut self, code: Arc<str>) {
        let (current, changed) = (self.current.clone(), self.changed.clone());
        self.inheriting.spawn(async move {
            inherited(code, &current, changed).await;
        });
    }

    fn look_into_slots(&mut self) {
        let (settings, others, own) = (self.current.borrow().0.clone(), self.others(), self.own());
        let Some(slot) = (0..SLOTS).position(|slot| settings.code_of_slot(slot) == own) else { return };
        let lower = (0..slot).map(|lower| settings.code_of_slot(lower)).filter(|code| !others.contains(code));
        self.gone.extend(lower.map(|code| (code, Instant::now())));
        let (current, changed) = (self.current.clone(), self.changed.clone());
        self.inheriting.spawn(async move {
            let higher = (slot + 1..SLOTS).map(|slot| settings.code_of_slot(slot));
            let mut empty = 0;
            for code in higher.filter(|code| !others.contains(code)) {
                let had_session = inherited(code, &current, changed.clone()).await;
                empty = if had_session { 0 } else { empty + 1 };
                if empty == EMPTY_SLOTS {
                    return;
                }
            }
        });
    }
}

/// Whether the broker had kept anything.
async fn inherited(code: Arc<str>, current: &watch::Receiver<(Settings, Views)>, changed: watch::Receiver<()>) -> bool {
    let (mut settings, views) = current.borrow().clone();
    // Its journal, if it is here.
    settings.state = settings.state.filter(|folder| folder.join(format!("{code}.journal")).exists());
    settings.code = Some(code.clone());
    match relay::Relay::inherit(settings, views, changed).await {
        Ok(had_session) => had_session,
        Err(error) => {
            tracing::warn!(code = &*code, %error, "what was kept for a relay that is gone cannot be taken over");
            false
        }
    }
}
