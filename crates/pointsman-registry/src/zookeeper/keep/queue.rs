//! The queue for the mastership: who is ahead, and when whoever is has had its time.

use std::time::Duration;

use tokio::time::Instant;
use zookeeper_client::OneshotWatcher;

use super::super::layout::{MASTER, before};
use super::super::place::{Folder, Place};
use super::{Keeper, Out, grace};

/// What is remembered of the queue between two looks at it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Since when this normal instance, not being the first, has seen no master.
    pub(super) vacant_since: Option<Instant>,
    /// How long those that are ahead may leave it vacant.
    pub(super) patience: Duration,
}

/// What to wait for in order to become master.
pub(super) enum Ahead {
    /// The node before the own one, the master's, or both: when one of them goes, look again.
    Watch(Vec<OneshotWatcher>),
    /// Nobody: the mastership is vacant, and it is for this instance to take it.
    Nobody,
    /// The queue is not what it was a moment ago: look again at once.
    Moved,
}

/// Number of instances behind the first in line that watch the master as well. Not all do, as each change would wake them all.
const STAND_BYS: usize = 6;
/// Time that the second in line leaves to the first, the third to both, and so on, before it takes a vacant mastership. Safe at any length,
/// because the create decides; the first in line takes some milliseconds.
const STAND_BY: Duration = Duration::from_millis(150);

impl Keeper {
    /// Looks who is ahead in the queue.
    pub(super) async fn ahead(
        &mut self,
        folder: &Folder<'_>,
        place: &Place,
        is_drained: bool,
    ) -> Result<Option<Ahead>, Out> {
        let names = folder.names().await?;
        let vacant = !names.iter().any(|name| name == MASTER);
        let queue = before(&names, &place.name);
        let Some(ahead) = queue.first() else {
            self.queue.vacant_since = None;
            let (taken, watcher) = folder.watch(MASTER).await?;
            return Ok(Some(if taken { Ahead::Watch(vec![watcher]) } else { Ahead::Nobody }));
        };
        let mut watches = Vec::new();
        let mut vacant = vacant;
        // The drained leave it to all others first; or one would take it, hand it on at once, and everybody's time would begin anew.
        self.queue.patience = grace(folder.session) * if is_drained { 2 } else { 1 };
        let position = queue.len();
        let stands_by = position <= STAND_BYS && !is_drained;
        if stands_by || vacant {
            // The first in line may have died a moment ago: then nobody would act before its session ends. Whoever counts how long the
            // mastership is vacant must not miss that it was not, in between.
            let (taken, watcher) = folder.watch(MASTER).await?;
            vacant = !taken;
            watches.push(watcher);
        }
        if stands_by {
            self.queue.patience = self.queue.patience.min(STAND_BY * u32::try_from(position).unwrap_or(u32::MAX));
        }
        // Not ours to take, unless whoever is ahead has had its time and done nothing: a process that hangs, or a node
        // that nobody serves. Safe, because the create decides.
        match (vacant, self.queue.vacant_since) {
            (false, _) => self.queue.vacant_since = None,
            (true, None) => self.queue.vacant_since = Some(Instant::now()),
            (true, Some(since)) if since.elapsed() >= self.queue.patience => return Ok(Some(Ahead::Nobody)),
            (true, Some(_)) => {}
        }
        // Where the next one ahead has died, nobody would tell that it is this one's turn to stand by, because those before that have left.
        let also = queue.get(STAND_BYS).filter(|_| !stands_by);
        for ahead in [Some(ahead), also].into_iter().flatten() {
            let (exists, watcher) = folder.watch(ahead).await?;
            if !exists {
                return Ok(Some(Ahead::Moved));
            }
            watches.push(watcher);
        }
        Ok(Some(Ahead::Watch(watches)))
    }
}
