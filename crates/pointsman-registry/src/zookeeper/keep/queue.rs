//! The queue for the mastership: who is ahead, and when whoever is has had its time.

use std::time::Duration;

use tokio::time::Instant;
use zookeeper_client::OneshotWatcher;

use super::super::layout::{MASTER, before};
use super::super::place::{Folder, Place};
use super::{Out, ZooKeeperRegistrar, grace};

/// What is remembered of the queue between two looks at it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Since when this normal instance, not being the first, has seen no master.
    pub(super) vacant_since: Option<Instant>,
    /// How long those that are ahead may leave it vacant.
    pub(super) patience: Duration,
    /// Who was ahead when there was a master.
    line: Option<Line>,
}

/// What a list of all nodes has said of the own node's place among them. New nodes come last, so it holds for as long as those are there that
/// it names.
#[derive(Debug)]
struct Line {
    own: String,
    is_drained: bool,
    stands_by: bool,
    /// The node before the own one, unless that is the first.
    next: Option<String>,
    /// Another one that is watched.
    also: Option<String>,
    /// Number of audits that have used it.
    uses: u32,
}

/// Maximum number of audits without a list, for an instance that does not stand by: those between it and the nodes that it watches may have
/// left, and nobody tells it that it has become one that stands by.
const USES: u32 = 128;

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

impl ZooKeeperRegistrar {
    /// Looks who is ahead in the queue.
    pub(super) async fn ahead(
        &mut self,
        folder: &Folder<'_>,
        place: &Place,
        is_drained: bool,
    ) -> Result<Option<Ahead>, Out> {
        if let Some(watches) = self.as_before(folder, place, is_drained).await? {
            return Ok(Some(Ahead::Watch(watches)));
        }
        let names = folder.names().await?;
        let vacant = !names.iter().any(|name| name == MASTER);
        let queue = before(&names, &place.name);
        let own = place.name.clone();
        let Some(ahead) = queue.first() else {
            self.queue.vacant_since = None;
            let (taken, watcher) = folder.watch(MASTER).await?;
            self.queue.line =
                taken.then_some(Line { own, is_drained, stands_by: true, next: None, also: None, uses: 0 });
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
        let (next, also) = (Some((*ahead).to_owned()), also.map(|also| (*also).to_owned()));
        self.queue.line = (!vacant).then_some(Line { own, is_drained, stands_by, next, also, uses: 0 });
        Ok(Some(Ahead::Watch(watches)))
    }

    /// Looks whether everything is as it was the last time; if it is, returns what to watch. A service of thousands of instances is not
    /// listed by each of them at each audit.
    async fn as_before(
        &mut self,
        folder: &Folder<'_>,
        place: &Place,
        is_drained: bool,
    ) -> Result<Option<Vec<OneshotWatcher>>, Out> {
        let line = self.queue.line.take().filter(|line| line.own == place.name && line.is_drained == is_drained);
        let Some(mut line) = line.filter(|line| line.stands_by || line.uses < USES) else { return Ok(None) };
        line.uses += 1;
        let mut watches = Vec::new();
        let has_master = if line.stands_by {
            let (exists, watcher) = folder.watch(MASTER).await?;
            watches.push(watcher);
            exists
        } else {
            folder.exists(MASTER).await?
        };
        if !has_master {
            return Ok(None);
        }
        for ahead in line.next.iter().chain(&line.also) {
            let (exists, watcher) = folder.watch(ahead).await?;
            if !exists {
                return Ok(None);
            }
            watches.push(watcher);
        }
        self.queue.vacant_since = None;
        self.queue.line = Some(line);
        Ok(Some(watches))
    }
}
