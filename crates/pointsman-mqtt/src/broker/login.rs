//! Who a client is: checked by the task of its connection, before the core hears of it.
//!
//! A password's check takes some 20 ms of a processor and 19 MiB, on purpose. So it runs beside the broker's thread, a few at a time, and
//! never under the core's lock.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle as Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

use super::throttle::Throttle;
use super::users::Users;
use crate::packet::Connect;
use crate::reason::Reason;

/// Passwords that are checked at a time.
const CHECKS: usize = 2;
/// Users of whom the last right password is known again.
const REMEMBERED: usize = 10_000;

/// What is known of a client before it is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// Nobody: of a client in this process, or where there are no users.
    Anonymous,
    User(Arc<str>),
    Refused {
        reason: Reason,
        why: &'static str,
    },
}

impl Login {
    pub(super) fn user(&self) -> Option<&Arc<str>> {
        if let Login::User(user) = self { Some(user) } else { None }
    }
}

/// Checks who clients are.
#[derive(Debug)]
pub(super) struct Logins {
    users: Mutex<Option<Users>>,
    checks: Arc<Semaphore>,
    throttle: Mutex<Throttle>,
    remembered: Mutex<Remembered>,
}

/// Passwords that were right: a fleet that connects again need not wait for its checks. Kept as hashes with a secret of this process.
#[derive(Debug, Default)]
struct Remembered {
    secrets: [RandomState; 2],
    passwords: HashMap<Arc<str>, [u64; 2]>,
}

impl Logins {
    pub(super) fn new(users: Option<Users>) -> Self {
        Self {
            users: Mutex::new(users),
            checks: Arc::new(Semaphore::new(CHECKS)),
            throttle: Mutex::default(),
            remembered: Mutex::default(),
        }
    }

    pub(super) fn set_users(&self, users: Option<Users>) {
        *lock(&self.users) = users;
    }

    /// Finds out who a client is. `certificate`: the user that its certificate names.
    pub(super) async fn check(
        &self,
        connect: &Connect,
        certificate: Option<Arc<str>>,
        address: Option<IpAddr>,
        runtime: &Runtime,
    ) -> Login {
        let users = lock(&self.users).clone();
        let bad = |why| Login::Refused { reason: Reason::BAD_CREDENTIALS, why };
        match (users, certificate, &connect.user) {
            (_, Some(certified), None) => Login::User(certified),
            (_, Some(certified), Some(user)) if *certified == **user && connect.password.is_none() => {
                Login::User(certified)
            }
            (None, Some(_), Some(_)) => bad("the user is the one of the certificate, without a password"),
            (None, None, _) => Login::Anonymous,
            (Some(_), None, None) => bad("a user name and password are needed"),
            (Some(users), _, Some(user)) => {
                let password = connect.password.clone().unwrap_or_default();
                self.check_password(users, Arc::from(&**user), password.to_vec(), address, runtime).await
            }
        }
    }

    async fn check_password(
        &self,
        users: Users,
        user: Arc<str>,
        password: Vec<u8>,
        address: Option<IpAddr>,
        runtime: &Runtime,
    ) -> Login {
        let now = || Instant::now().into_std();
        // Asked with the permit in hand: of many attempts at once the later ones know how the earlier ones have ended.
        let mut permit = self.permit().await;
        match address.map(|address| lock(&self.throttle).wait(address, &user, now())) {
            Some(None) => {
                let why = "too many attempts of this user wait at this address";
                return Login::Refused { reason: Reason::SERVER_BUSY, why };
            }
            Some(Some(wait)) if !wait.is_zero() => {
                drop(permit);
                sleep(wait).await;
                permit = self.permit().await;
            }
            _ => {}
        }
        let stored = users.stored(&user);
        let known = stored.as_ref().map(|stored| lock(&self.remembered).mark(stored, &password));
        let is_right = if known.is_some_and(|mark| lock(&self.remembered).passwords.get(&user) == Some(&mark)) {
            true
        } else {
            let asked = user.clone();
            let check = runtime.spawn_blocking(move || {
                let _permit = permit;
                users.admits(&asked, &password)
            });
            check.await.unwrap_or(false)
        };
        match (is_right, address) {
            (true, address) => {
                address.into_iter().for_each(|address| lock(&self.throttle).succeeded(address, &user));
                known.into_iter().for_each(|mark| lock(&self.remembered).keep(&user, mark));
                Login::User(user)
            }
            (false, address) => {
                address.into_iter().for_each(|address| lock(&self.throttle).failed(address, &user, now()));
                Login::Refused { reason: Reason::BAD_CREDENTIALS, why: WRONG }
            }
        }
    }
}

impl Logins {
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        // Fails only where it is closed, which it never is.
        self.checks.clone().acquire_owned().await.ok()
    }
}

/// Why a password is refused.
pub(super) const WRONG: &str = "wrong user name or password";

impl Remembered {
    /// What stands for a password of a user with that hash.
    fn mark(&self, stored: &str, password: &[u8]) -> [u64; 2] {
        [0, 1].map(|index| self.secrets[index].hash_one((stored, password)))
    }

    fn keep(&mut self, user: &Arc<str>, mark: [u64; 2]) {
        if self.passwords.len() >= REMEMBERED && !self.passwords.contains_key(user) {
            // Any of them: the one that goes has to wait for one check more.
            let gone = self.passwords.keys().next().cloned();
            if let Some(gone) = gone {
                self.passwords.remove(&gone);
            }
        }
        self.passwords.insert(user.clone(), mark);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
