//! Directories: one for each scope that is followed.

use std::sync::Arc;

use pointsman_core::{Role, check_name};
use tokio::sync::{mpsc, watch};

use super::builder::DISK;
use super::{Registry, lock, set};
use crate::backend::{Backend, Event, Scope};
use crate::directory::{Directory, Inner as DirectoryInner};
use crate::hold::{self, Own};
use crate::store::{Restore, Shared, Store};
use crate::{Error, Result};

/// Events on their way from a backend to a directory's store, before the backend has to wait.
const EVENTS: usize = 256;

impl Registry {
    pub(super) async fn follow(&self, scope: Scope) -> Result<Directory> {
        self.check_open()?;
        let directory = self.directory(scope);
        let has_content = if self.has_answered() {
            directory.loaded(self.inner.connect_timeout).await
        } else {
            // It has been waited for already, in `connect`.
            tokio::time::timeout(DISK, directory.begun()).await.is_ok()
        };
        if has_content {
            let _ = tokio::time::timeout(self.inner.connect_timeout, self.shows_own(&directory)).await;
            return Ok(directory);
        }
        if self.inner.waits {
            let mut closed = self.inner.closed.subscribe();
            tokio::select! {
                () = directory.begun() => return Ok(directory),
                () = set(&mut closed) => {}
            }
        }
        self.check_open()?;
        let tried = format!("read services from {}", self.inner.url);
        if let Some(reason) = directory.shared().refusal() {
            return Err(Error::refused(tried, reason.to_string()));
        }
        Err(Error::Unreachable {
            tried,
            waited: self.inner.connect_timeout,
            reason: "no connection, and no snapshot on disk".to_owned(),
        })
    }

    /// Waits until the directory shows the registrations of this process as they are, so that whoever has registered finds itself; not while
    /// the registry is away.
    async fn shows_own(&self, directory: &Directory) {
        let is_shown = |Own { service, code, roles }: &Own| {
            let snapshot = directory.snapshot(service);
            let is_registered = || snapshot.find(code).is_some_and(|found| !found.is_guarded());
            match roles.role() {
                Role::Detached => true,
                _ if snapshot.unreadable().is_some() => true,
                Role::Normal => is_registered(),
                Role::Master(_) => is_registered() && snapshot.master().is_some_and(|master| master.code == *code),
            }
        };
        let mut changed = directory.shared().version.subscribe();
        let mut missing = hold::own(&self.inner.holds, &directory.shared().scope);
        let all_shown = async {
            loop {
                changed.mark_unchanged();
                missing.retain(|own| !is_shown(own));
                let Some(Own { roles, .. }) = missing.first() else { return };
                // Or the role changes first: then this is not what there is to wait for.
                let role = roles.role();
                tokio::select! {
                    _ = changed.changed() => {}
                    _ = roles.wait_for(|now| now != role) => {}
                }
            }
        };
        tokio::select! {
            biased;
            () = all_shown => {}
            () = directory.stale() => {}
        }
    }

    /// One directory a scope: whoever follows the same shares it.
    pub(super) fn directory(&self, scope: Scope) -> Directory {
        let inner = &self.inner;
        let mut directories = lock(&inner.directories);
        // One that has ended was begun in a runtime that has ended: this one begins in the caller's.
        if let Some(existing) = directories.find(&scope).filter(|existing| !existing.shared().has_ended()) {
            return existing;
        }
        let known = directories.known(&scope);
        let shared = Arc::new(Shared::new(scope.clone()));
        let (events, receiver) = mpsc::channel(EVENTS);
        let (restores, restored) = mpsc::unbounded_channel();
        let store = Store::new(shared.clone(), inner.guard, inner.snapshots.clone(), restores);
        let (backend, followed) = (inner.backend.clone(), scope.clone());
        let restoring = restore(backend.clone(), restored);
        // On one task: what the backend sends, the store takes in without another thread being woken.
        let (alive, mut ended) = watch::channel(());
        let (mut closed, task) = (inner.closed.subscribe(), inner.tasks.subscribe());
        tokio::spawn(async move {
            let following = async move {
                let _task = task;
                tokio::select! {
                    biased;
                    () = set(&mut closed) => {
                        let _ = events.send(Event::Stale).await;
                    }
                    // Drops the backend's end of the channel, so that the store saves what is left, and ends.
                    _ = ended.changed() => {}
                    () = async {
                        for state in known {
                            let _ = events.send(Event::Known(state)).await;
                        }
                        backend.follow(followed, events.clone()).await;
                    } => {}
                }
            };
            tokio::join!(following, store.run(receiver), restoring);
        });
        let directory = Arc::new(DirectoryInner::new(shared, alive));
        directories.insert(scope, &directory);
        Directory::new(directory)
    }
}

/// The scope of these services.
pub(super) fn scope(services: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Result<Scope> {
    let services: std::collections::BTreeSet<Arc<str>> = services.into_iter().map(Into::into).collect();
    services.iter().try_for_each(|service| check_name("service", service))?;
    Ok(Scope::Services(services))
}

/// Sets again, in a registry that has lost its data, what operators had set there.
async fn restore(backend: Arc<dyn Backend>, mut restores: mpsc::UnboundedReceiver<Restore>) {
    while let Some(Restore { service, code, set }) = restores.recv().await {
        match backend.restore_override(&service, &code, set).await {
            Ok(()) => tracing::warn!(%service, %code, ?set, "override restored: the registry had lost it"),
            Err(error) => tracing::warn!(%service, %code, ?set, %error, "override kept here, but not restored"),
        }
    }
}
