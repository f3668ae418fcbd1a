use pointsman_testkit::{ZooKeeper, unique_prefix};

use super::*;
use crate::overrides::OverrideChange;
use crate::url::{Acl, Url, ZooKeeperUrl};
use crate::zookeeper::overrides;
use crate::zookeeper::session::Sessions;
use crate::{Registry, Result};

const HOUR: i64 = 60 * 60 * 1000;

fn stored(data: &[u8], written_ms: i64, registered: bool) -> Stored {
    Stored { service: "s".into(), code: "a".into(), data: data.to_vec(), version: 0, written_ms, registered }
}

#[test]
fn an_override_is_kept_for_days_after_its_code_was_last_seen() {
    let now_ms = 1000 * HOUR;
    let fate = |written_ms, registered, since_ms| {
        let times = Times { now_ms, since_ms, is_settled: true };
        times.fate(&stored(br#"{"drained":true}"#, written_ms, registered), &AGES)
    };
    let days = |days: i64| now_ms - days * 24 * HOUR;
    assert_eq!(fate(now_ms - 11 * HOUR, true, 0), Fate::Keep);
    assert_eq!(fate(now_ms - 12 * HOUR, true, 0), Fate::Refresh);
    assert_eq!(fate(0, true, 0), Fate::Refresh, "it is registered, however long ago that was written down");
    assert_eq!(fate(days(7) + 1, false, 0), Fate::Keep);
    assert_eq!(fate(days(7), false, 0), Fate::Remove);
    assert_eq!(fate(days(30), false, days(7) + 1), Fate::Keep, "nobody has looked for so long");
    assert_eq!(fate(days(30), false, days(7)), Fate::Remove);
    assert_eq!(fate(now_ms + HOUR, false, 0), Fate::Keep, "the registry's clock was set back");
}

#[test]
fn that_nothing_is_set_is_kept_while_somebody_may_remember_something_else() {
    for (is_settled, fate) in [(false, Fate::Keep), (true, Fate::Remove)] {
        let times = Times { now_ms: HOUR, since_ms: 0, is_settled };
        assert_eq!(times.fate(&stored(br#"{"drained":false}"#, HOUR, true), &AGES), fate);
    }
}

#[test]
fn looks_are_without_a_gap_while_none_is_left_out_for_long() {
    let (gap, day) = (AGES.gap, 24 * HOUR);
    assert_eq!(looked_since(None, 10 * day, gap), 10 * day, "the first look");
    let said = Looks { since_ms: 3 * day, before_ms: 9 * day };
    assert_eq!(looked_since(Some(said), 10 * day, gap), 3 * day);
    assert_eq!(looked_since(Some(said), 11 * day, gap), 3 * day);
    assert_eq!(looked_since(Some(said), 11 * day + 1, gap), 11 * day + 1);
}

/// A registry of its own, seen through a session of ours.
struct Seen {
    settings: ZooKeeperUrl,
    layout: Layout,
    session: Session,
    registry: Registry,
    _sessions: Sessions,
}

impl Seen {
    async fn start() -> Self {
        let prefix = unique_prefix();
        let url = format!("zookeeper://{}{prefix}", ZooKeeper::shared().await.address());
        let Url::ZooKeeper(settings) = Url::parse(&url).unwrap().0 else { panic!("{url} is a zookeeper url") };
        let layout = Layout::new(&settings.prefix, &settings.root);
        let sessions = Sessions::start(Arc::new((*settings).clone())).unwrap();
        let session = sessions.up().await.unwrap();
        let registry = Registry::connect(&url).await.unwrap();
        Self { settings: *settings, layout, session, registry, _sessions: sessions }
    }

    async fn set(&self, service: &str, code: &str, change: OverrideChange) {
        overrides::change(&self.session, &self.layout, self.settings.acl, service, code, change).await.unwrap();
    }

    async fn stat(&self, service: &str, code: &str) -> Option<Stat> {
        self.session.client.check_stat(&format!("{}/{code}", self.layout.overrides_of(service))).await.unwrap()
    }

    async fn codes(&self) -> Result<Vec<(String, bool)>> {
        let all = self.registry.overrides(None).await?;
        Ok(all.into_iter().map(|set| (format!("{}/{}", set.service, set.code), set.registered)).collect())
    }
}

/// As if everything had been written long ago.
const AT_ONCE: Ages = Ages { look: Duration::ZERO, fresh: Duration::ZERO, gap: DAY, kept: Duration::ZERO };

#[tokio::test(flavor = "multi_thread")]
async fn a_look_removes_what_is_set_for_codes_that_are_gone_and_refreshes_the_others() {
    let seen = Seen::start().await;
    let look = async |ages: &Ages| look(&seen.session, &seen.layout, ages).await.unwrap();
    assert_eq!(look(&AT_ONCE).await, 0, "nothing was ever set");
    for (service, code) in [("s", "here"), ("s", "gone"), ("vanished", "gone")] {
        seen.set(service, code, OverrideChange::Drain).await;
    }
    let here = seen.registry.register(pointsman_core::Instance::new("s").code("here")).await.unwrap();
    let all = [("s/gone", false), ("s/here", true), ("vanished/gone", false)];
    assert_eq!(seen.codes().await.unwrap(), all.map(|(name, there)| (name.to_owned(), there)));
    assert_eq!(look(&AGES).await, 0, "the folder is new: it is not yet time for a look");
    let before = seen.stat("s", "here").await.unwrap();
    assert_eq!(look(&Ages { kept: OVERRIDES_KEPT, ..AT_ONCE }).await, 0, "nothing has been gone for long");
    let after = seen.stat("s", "here").await.unwrap();
    assert!(after.version > before.version, "whoever is here is seen");
    assert_eq!(look(&AT_ONCE).await, 2);
    assert_eq!(seen.codes().await.unwrap(), [("s/here".to_owned(), true)]);
    let folder = seen.layout.overrides_of("vanished");
    assert_eq!(seen.session.client.check_stat(&folder).await.unwrap(), None, "the folder is gone, too");
    assert!(seen.registry.overrides(None).await.unwrap()[0].drained);
    here.close().await.unwrap();
    assert_eq!(look(&AT_ONCE).await, 1);
    assert_eq!(seen.codes().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_sets_meanwhile_stays() {
    let seen = Seen::start().await;
    for code in ["a", "b", "c"] {
        seen.set("s", code, OverrideChange::Drain).await;
    }
    let all = read(&seen.session, &seen.layout, None).await.unwrap();
    seen.set("s", "b", OverrideChange::Weight(Some(7))).await;
    overrides::change(&seen.session, &seen.layout, Acl::Open, "s", "c", OverrideChange::Drain).await.unwrap();
    let removed = carry_out(&seen.session, &seen.layout, all, |_| Fate::Remove).await.unwrap();
    assert_eq!(removed, 1);
    assert_eq!(seen.codes().await.unwrap(), ["s/b", "s/c"].map(|name| (name.to_owned(), false)));
}
