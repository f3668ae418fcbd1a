//! Which codes this process has registered: registering twice is refused, not doubled.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use pointsman_core::Instance;
use tokio::sync::watch;

use crate::Error;
use crate::backend::Scope;
use crate::registration::{Command, Life, Reply, Roles, Task};

/// The codes that are held, and by whom.
pub(crate) type Holds = Arc<Mutex<HashMap<Key, Holder>>>;

/// Service and code.
type Key = (Arc<str>, Arc<str>);

/// Who holds a code, as it matters to the next who wants it.
#[derive(Debug)]
pub(crate) struct Holder {
    registration: Life,
    roles: Roles,
    /// Who it is, where the same may take over from itself.
    holder: Option<Arc<str>>,
    /// Tells it from another that has taken its place.
    mark: Arc<()>,
    /// Nothing is sent: it is dropped when the code is free again. Made for the first who waits for that.
    gone: Option<watch::Sender<()>>,
}

/// Holds service and code for as long as the backend's task lives.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Holds,
    key: Key,
    /// Which of the holders it is.
    mark: Arc<()>,
}

impl Hold {
    /// Takes the code for a registration that is wanted by `task`; at once from another registration of the same holder, which the backend
    /// ends. Waits for it, at most for the task's patience, while whoever holds it has ended and is being removed.
    pub(crate) async fn take(
        holds: &Holds,
        registration: Life,
        roles: &Roles,
        task: &mut Task,
    ) -> Result<Self, NotHeld> {
        let (service, code) = (task.instance.service.clone(), task.instance.code.clone());
        let deadline = task.patience.and_then(|patience| tokio::time::Instant::now().checked_add(patience));
        let (holder, mark) = (task.holder.clone(), Arc::new(()));
        let new = || Holder {
            registration: registration.clone(),
            roles: roles.clone(),
            holder: holder.clone(),
            mark: mark.clone(),
            gone: None,
        };
        loop {
            let mut gone = match lock(holds).entry((service.clone(), code.clone())) {
                Entry::Vacant(free) => {
                    let key = free.key().clone();
                    free.insert(new());
                    return Ok(Self { holds: holds.clone(), key, mark });
                }
                Entry::Occupied(mut held) if !held.get().registration.goes_on() => {
                    held.get_mut().gone.get_or_insert_default().subscribe()
                }
                Entry::Occupied(mut held) if holder.is_some() && held.get().holder == holder => {
                    let key = held.key().clone();
                    held.insert(new());
                    return Ok(Self { holds: holds.clone(), key, mark });
                }
                Entry::Occupied(_) => {
                    let holder = format!("this process (pid {})", std::process::id());
                    return Err(NotHeld::Failed(Error::DuplicateCode { service, code, holder }));
                }
            };
            let too_late = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = gone.changed() => {}
                command = task.commands.next() => note(task, command)?,
                () = too_late => {
                    let reason = "an ended registration of the same code is not removed yet";
                    return Err(NotHeld::Failed(Error::unavailable(format!("register {service}/{code}"), reason)));
                }
            }
        }
    }
}

/// A registration of this process.
pub(crate) struct Own {
    pub(crate) service: Arc<str>,
    pub(crate) code: Arc<str>,
    pub(crate) roles: Roles,
}

/// The registrations of this process that live, of the services of a scope.
pub(crate) fn own(holds: &Holds, scope: &Scope) -> Vec<Own> {
    let holds = lock(holds);
    let own = holds.iter().filter(|((service, _), holder)| scope.contains(service) && holder.registration.goes_on());
    let own = own.map(|((service, code), Holder { roles, .. })| Own {
        service: service.clone(),
        code: code.clone(),
        roles: roles.clone(),
    });
    own.collect()
}

/// Why a code is not held.
#[derive(Debug)]
pub(crate) enum NotHeld {
    Failed(Error),
    /// The registration has been given up meanwhile; with the reply, if somebody waits for that.
    GivenUp(Option<Reply>),
}

/// Takes in what is asked for while the code is waited for.
fn note(task: &mut Task, command: Option<Command>) -> Result<(), NotHeld> {
    let Instance { service, code, .. } = &*task.instance;
    match command {
        None => return Err(NotHeld::GivenUp(None)),
        Some(Command::Close(_, reply)) => return Err(NotHeld::GivenUp(Some(reply))),
        Some(Command::Resign(reply)) => {
            let _ = reply.send(Err(Error::NotMaster { service: service.clone(), code: code.clone() }));
        }
        Some(later) => task.early.push(later),
    }
    Ok(())
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = lock(&self.holds);
        // The same holder may have taken over.
        if holds.get(&self.key).is_some_and(|holder| Arc::ptr_eq(&holder.mark, &self.mark)) {
            holds.remove(&self.key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left the map half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
