//! Which codes this process has registered: registering twice is refused, not doubled.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::registration::{Command, Registration};
use crate::{Error, Result};

/// The codes that are held, and by whom.
pub(crate) type Holds = Arc<Mutex<HashMap<Key, Holder>>>;

/// Service and code.
type Key = (Arc<str>, Arc<str>);

/// Who holds a code, as it matters to the next who wants it.
#[derive(Debug)]
pub(crate) struct Holder {
    registration: mpsc::WeakUnboundedSender<Command>,
    /// Who it is, where the same may take over from itself.
    holder: Option<Arc<str>>,
    /// Ends the registration's task without deregistering.
    cut: Arc<Notify>,
    /// Nothing is sent: it is dropped when the code is free again.
    gone: watch::Sender<()>,
}

/// Holds service and code for as long as the backend's task lives.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Holds,
    key: Key,
    /// Which of the holders it is.
    cut: Arc<Notify>,
    /// Whom it takes over from, until it has.
    before: Option<Holder>,
}

impl Hold {
    /// Takes the code; waits for it, at most for `patience`, while whoever holds it has ended and is being removed.
    pub(crate) async fn take(
        holds: &Holds,
        registration: &Registration,
        holder: Option<&Arc<str>>,
        patience: Duration,
    ) -> Result<Self> {
        let (service, code) = (registration.instance().service.clone(), registration.instance().code.clone());
        let deadline = Instant::now() + patience;
        let (holder, cut) = (holder.cloned(), registration.cut());
        let new = || Holder {
            registration: registration.commands(),
            holder: holder.clone(),
            cut: cut.clone(),
            gone: watch::Sender::new(()),
        };
        loop {
            let mut gone = match lock(holds).entry((service.clone(), code.clone())) {
                Entry::Vacant(free) => {
                    let key = free.key().clone();
                    free.insert(new());
                    return Ok(Self { holds: holds.clone(), key, cut, before: None });
                }
                Entry::Occupied(mut held) if holder.is_some() && held.get().holder == holder => {
                    let (key, before) = (held.key().clone(), Some(held.insert(new())));
                    return Ok(Self { holds: holds.clone(), key, cut, before });
                }
                Entry::Occupied(held) if held.get().registration.strong_count() == 0 => held.get().gone.subscribe(),
                Entry::Occupied(_) => {
                    let holder = format!("this process (pid {})", std::process::id());
                    return Err(Error::DuplicateCode { service, code, holder });
                }
            };
            if tokio::time::timeout_at(deadline, gone.changed()).await.is_err() {
                let reason = "an ended registration of the same code is not removed yet".to_owned();
                return Err(Error::Unavailable { step: format!("register {service}/{code}"), reason });
            }
        }
    }
}

impl Hold {
    /// It is registered: whom it takes over from is not needed any more.
    pub(crate) fn settle(&mut self) {
        if let Some(before) = self.before.take() {
            before.cut.notify_one();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = lock(&self.holds);
        // The same holder may have taken over.
        if holds.get(&self.key).is_some_and(|holder| Arc::ptr_eq(&holder.cut, &self.cut)) {
            let lives = |before: &Holder| before.registration.upgrade().is_some_and(|sender| !sender.is_closed());
            match self.before.take().filter(lives) {
                Some(before) => holds.insert(self.key.clone(), before),
                None => holds.remove(&self.key),
            };
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left the map half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
