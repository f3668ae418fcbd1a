use pointsman_core::{Instance, ObservedInstance, Status};
use tokio::sync::watch;

use super::cells::{IDLE, JOURNAL};
use super::*;
use crate::backend::Scope;
use crate::directory::{Directory, Inner};
use crate::overrides::Override;

fn state(service: &str, codes: &[&str]) -> ServiceState {
    let instance = |code: &&str| Arc::new(ObservedInstance::from(Instance::new(service).code(*code)));
    let instances = codes.iter().map(instance).collect();
    ServiceState { revision: 1, instances, ..ServiceState::empty(service) }
}

fn reset(states: Vec<ServiceState>) -> Event {
    Event::Reset { states, identity: None }
}

fn restores() -> mpsc::UnboundedSender<Restore> {
    mpsc::unbounded_channel().0
}

fn saved(folder: &std::path::Path, service: &str, codes: std::ops::Range<usize>) {
    let instances =
        codes.map(|code| Arc::new(ObservedInstance::from(Instance::new(service).code(code.to_string())))).collect();
    let (snapshot, overrides) = (Arc::new(Snapshot::new(service, 7, instances)), Overrides::new());
    disk::save(folder, vec![ToSave { snapshot, overrides, absent: disk::Absent::new() }]);
}

#[tokio::test]
async fn who_is_too_far_behind_gets_everything_and_others_what_has_changed() {
    let shared = Shared::new(Scope::All);
    let put = |service: &str, code: &str| {
        let raw = Snapshot::new(service, 1, vec![Arc::new(ObservedInstance::from(Instance::new(service).code(code)))]);
        let (before, next) = (shared.snapshot(service), Some(Arc::new(raw.clone())));
        shared.publish(vec![Shown { before, raw, left: Vec::new(), next }]);
    };
    let since = |version| {
        let since = shared.since(version);
        let mut names: Vec<_> = since.snapshots.iter().map(|snapshot| snapshot.service().to_string()).collect();
        names.sort();
        (names.join(" "), since.version)
    };
    assert_eq!(since(Some(0)), (String::new(), 0));
    ["a", "b", "a"].into_iter().for_each(|service| put(service, "x"));
    assert_eq!(since(Some(1)), ("a b".to_owned(), 3));
    assert_eq!(since(Some(2)), ("a".to_owned(), 3));
    (0..JOURNAL).for_each(|_| put("c", "x"));
    assert_eq!(since(Some(3)).0, "c");
    assert_eq!(since(Some(2)).0, "a b c", "the journal does not reach back so far");
    assert_eq!(since(None).0, "a b c");
}

#[tokio::test]
async fn what_only_the_disk_knows_is_gone_with_the_first_reset() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path(), "few", 0..2);
    saved(folder.path(), "many", 0..20);
    let shared = Arc::new(Shared::new(Scope::All));
    let (events, receiver) = mpsc::channel(1);
    let store = Store::new(shared.clone(), Some(Guard::default()), Some(folder.path().to_owned()), restores());
    let running = tokio::spawn(store.run(receiver));
    let mut link = shared.link.subscribe();
    link.wait_for(|link| link.loaded == Loaded::FromDisk).await.unwrap();
    assert_eq!(shared.snapshot("few").instances().len(), 2);
    events.send(reset(vec![])).await.unwrap();
    link.wait_for(|link| link.loaded == Loaded::FromRegistry).await.unwrap();
    for (service, count) in [("few", 2), ("many", 20)] {
        let snapshot = shared.snapshot(service);
        assert!(snapshot.is_guarded() && snapshot.instances().len() == count, "an emptied registry: {snapshot:?}");
    }
    drop(events);
    running.await.unwrap();
    let loaded = disk::load(folder.path(), &Scope::one("few")).pop().unwrap().snapshot;
    assert_eq!(loaded, *shared.snapshot("few"), "who is guarded, and since when");
}

fn store(guard: Option<Guard>) -> (Arc<Shared>, Store) {
    let shared = Arc::new(Shared::new(Scope::All));
    (shared.clone(), Store::new(shared, guard, None, restores()))
}

#[tokio::test]
async fn nobody_sees_the_lost_missing_before_they_are_guarded() {
    let (shared, mut store) = store(Some(Guard::default()));
    let now = Instant::now();
    store.take(reset(vec![state("a", &["1", "2"]), state("b", &["1", "2", "3"]), state("c", &["1"])]), now);
    let version = shared.since(None).version;
    store.take(Event::Stale, now);
    store.take(reset(vec![state("a", &["1"]), state("c", &["1"])]), now);
    assert_eq!(*shared.version.borrow(), version + 2, "one snapshot for each service that has lost anything");
    let guarded = |service: &str| {
        let snapshot = shared.snapshot(service);
        let guarded = snapshot.instances().iter().filter(|instance| instance.is_guarded()).count();
        (snapshot.instances().len(), guarded)
    };
    assert_eq!([guarded("a"), guarded("b"), guarded("c")], [(2, 1), (3, 3), (1, 0)]);
    // They come back one by one, and the others stay.
    store.take(Event::Put(state("b", &["1", "2"])), now);
    assert_eq!(guarded("b"), (3, 1));
    store.take(Event::Put(state("b", &["1", "2", "3"])), now);
    assert_eq!(guarded("b"), (3, 0));
    store.end_guards(now + Duration::from_secs(30));
    assert_eq!([guarded("a"), guarded("c")], [(1, 0), (1, 0)]);
}

/// One service comes, and leaves cleanly.
fn pass(store: &mut Store, service: &str, now: Instant) {
    store.take(Event::Put(state(service, &["a"])), now);
    store.take(Event::Put(ServiceState { left: vec!["a".into()], ..ServiceState::empty(service) }), now);
}

#[tokio::test]
async fn what_has_vanished_is_forgotten_but_for_its_revision() {
    let (shared, mut store) = store(Some(Guard::default()));
    let now = Instant::now();
    store.take(Event::Put(state("lives", &["a"])), now);
    pass(&mut store, "often", now);
    let vanished = shared.snapshot("often").revision();
    for number in 0..5 * IDLE {
        pass(&mut store, &format!("service-{number}"), now);
        assert!(shared.has_left(&format!("service-{number}"), "a"), "whoever reads the change asks");
        assert_eq!((store.held.len(), store.deadlines.len()), (1, 0));
        assert!(shared.cells().len() <= IDLE + 2, "{}", shared.cells().len());
    }
    let (forgotten, unknown) = (shared.snapshot("often"), shared.snapshot("never").revision());
    assert!(forgotten.is_empty() && forgotten.revision() >= vanished && unknown == forgotten.revision());
    store.take(Event::Put(state("often", &["a"])), now);
    assert!(shared.snapshot("often").revision() > forgotten.revision());
}

#[tokio::test]
async fn the_view_of_a_service_that_has_vanished_comes_alive_again() {
    let (shared, mut store) = store(Some(Guard::default()));
    let now = Instant::now();
    let (never, _) = shared.cell("never");
    let (view, mut changed) = shared.cell("s");
    pass(&mut store, "s", now);
    for number in 0..3 * IDLE {
        pass(&mut store, &format!("service-{number}"), now);
    }
    changed.mark_unchanged();
    assert!(view.load().is_empty());
    store.take(Event::Put(state("s", &["a", "b"])), now);
    assert_eq!((view.load().instances().len(), never.load().is_empty()), (2, true));
    assert!(changed.has_changed().unwrap() && shared.cell("s").0.is_same(&view));
    drop((view, changed, never));
    store.take(Event::Put(ServiceState::empty("s")), now);
    for number in 0..3 * IDLE {
        pass(&mut store, &format!("service-{number}"), now);
    }
    assert!(shared.cells().len() <= IDLE + 1, "nobody reads them any more: {}", shared.cells().len());
}

#[tokio::test]
async fn who_is_far_behind_hears_of_those_that_are_forgotten() {
    let (shared, mut store) = store(None);
    let now = Instant::now();
    store.take(reset(vec![state("gone", &["a"]), state("lives", &["a"])]), now);
    let directory = Directory::new(Arc::new(Inner::new(shared.clone(), watch::channel(()).0)));
    let mut updates = directory.updates();
    let before = shared.snapshot("gone").revision();
    store.take(Event::Put(ServiceState::empty("gone")), now);
    for number in 0..JOURNAL {
        pass(&mut store, &format!("service-{number}"), now);
    }
    let told = updates.next().await.unwrap();
    assert!(told.is_sorted_by_key(|snapshot| snapshot.revision()));
    let gone: Vec<_> = told.iter().filter(|snapshot| &**snapshot.service() == "gone").collect();
    assert!(gone.len() == 1 && gone[0].is_empty() && gone[0].revision() > before, "{gone:?}");
    store.take(Event::Put(state("gone", &["b"])), now);
    let told = updates.next().await.unwrap();
    assert!(told.len() == 1 && told[0].instances().len() == 1 && told[0].revision() > gone[0].revision());
}

#[tokio::test]
async fn who_was_lost_a_moment_ago_is_guarded_when_the_rest_is_lost_as_well() {
    let (shared, mut store) = store(Some(Guard::default()));
    let now = Instant::now();
    store.take(reset(vec![state("small", &["a"]), state("other", &["a"])]), now);
    store.take(Event::Put(ServiceState::empty("small")), now);
    assert!(shared.snapshot("small").is_empty());
    let soon = now + Duration::from_secs(4);
    store.take(reset(vec![]), soon);
    assert!(shared.snapshot("small").is_guarded() && shared.snapshot("other").is_guarded());
    // And what is not guarded is forgotten when the window is over.
    store.take(Event::Put(state("later", &["a"])), soon);
    store.take(Event::Put(ServiceState::empty("later")), soon);
    assert!(store.held.contains_key("later"));
    store.end_guards(soon + Duration::from_secs(5));
    assert!(!store.held.contains_key("later"));
    store.end_guards(soon + Duration::from_secs(60));
    assert_eq!((store.held.len(), store.deadlines.len()), (0, 0));
}

#[tokio::test]
async fn what_comes_together_is_one_event_for_each_service_and_nobody_who_left_is_forgotten() {
    let (events, mut receiver) = mpsc::channel(10);
    let left = |code: &str| ServiceState { left: vec![code.into()], ..state("s", &["z"]) };
    for event in [Event::Put(state("t", &["1"])), Event::Put(left("b")), Event::Stale, Event::Put(left("c"))] {
        events.send(event).await.unwrap();
    }
    let gathered = gather(Event::Put(left("a")), &mut receiver);
    let words: Vec<_> = gathered
        .iter()
        .map(|event| match event {
            Event::Put(state) => format!("{} {}", state.service, state.left.concat()),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(words, ["s ba", "t ", "Stale", "s c"]);
}

#[test]
fn only_after_what_took_long_events_gather() {
    let (mut pace, now) = (Pace::default(), Instant::now());
    let mut rest = |took: Duration| {
        pace.note(now, now + took);
        pace.rests_until.map(|until| until.saturating_duration_since(now + took))
    };
    assert_eq!(rest(QUICK), None);
    assert_eq!(rest(Duration::from_millis(1)), Some(Duration::from_millis(2)));
    assert_eq!(rest(Duration::from_secs(1)), Some(LONGEST_REST));
}

#[tokio::test]
async fn a_reset_is_seen_whole_or_not_at_all() {
    let (shared, mut store) = store(None);
    let reader = shared.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let reading = std::thread::spawn(move || {
        let mut torn = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let codes = reader.snapshots().into_iter().map(|snapshot| snapshot.instances()[0].code.clone());
            torn += usize::from(codes.collect::<HashSet<_>>().len() > 1);
        }
        torn
    });
    for round in 0..200 {
        let code = round.to_string();
        store.take(reset((0..50).map(|service| state(&format!("s-{service}"), &[&code])).collect()), Instant::now());
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(reading.join().unwrap(), 0);
}

#[tokio::test]
async fn overrides_outlive_the_loss_of_the_registrys_data() {
    let shared = Arc::new(Shared::new(Scope::All));
    let (restores, mut restored) = mpsc::unbounded_channel();
    let mut store = Store::new(shared.clone(), Some(Guard::default()), None, restores);
    let (now, drained) = (Instant::now(), Override { drained: true, weight: Some(7) });
    let identity = |id: &str, age: u64| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() - Duration::from_secs(age);
        Some(Identity { id: id.to_owned(), since_unix_ms: u64::try_from(since.as_millis()).ok() })
    };
    let with = |overrides: &[(&str, Override)]| {
        let overrides = overrides.iter().map(|(code, set)| ((*code).into(), *set)).collect();
        vec![ServiceState { overrides, ..state("s", &["a", "b"]) }]
    };
    let status = |code: &str| {
        let snapshot = shared.snapshot("s");
        let instance = snapshot.find(code).unwrap();
        (instance.status, instance.weight, instance.is_guarded())
    };
    store.take(Event::Reset { states: with(&[("a", drained), ("gone", drained)]), identity: identity("1", 5) }, now);
    assert_eq!((status("a"), status("b")), ((Status::Drained, 7, false), (Status::Passing, 1, false)));
    // Nobody is registered in the new one yet.
    store.take(Event::Reset { states: vec![], identity: identity("2", 0) }, now);
    assert_eq!((status("a"), status("b")), ((Status::Drained, 7, true), (Status::Passing, 1, true)));
    let codes = [restored.try_recv().unwrap().code, restored.try_recv().unwrap().code];
    assert_eq!(codes, ["a", "gone"].map(Arc::from));
    store.take(Event::Put(with(&[]).remove(0)), now);
    assert_eq!(status("a"), (Status::Drained, 7, false), "it has said nothing of it");
    let weight = Override { drained: false, weight: Some(3) };
    store.take(Event::Put(with(&[("a", weight)]).remove(0)), now);
    store.take(Event::Put(with(&[]).remove(0)), now);
    assert_eq!(status("a"), (Status::Passing, 1, false), "it has said something, and then nothing");
    // Of the same registry, and of one that is as it is for long, everything is believed.
    for (id, age) in [("2", 0), ("3", 601)] {
        store.take(Event::Put(with(&[("a", drained)]).remove(0)), now);
        assert_eq!(status("a"), (Status::Drained, 7, false));
        store.take(Event::Reset { states: with(&[]), identity: identity(id, age) }, now);
        assert_eq!(status("a"), (Status::Passing, 1, false), "{id}");
    }
    // What a registry that cannot tell its age never mentions again ends by itself.
    store.take(Event::Put(with(&[("a", drained)]).remove(0)), now);
    let ageless = Some(Identity { id: "4".to_owned(), since_unix_ms: None });
    store.take(Event::Reset { states: with(&[]), identity: ageless }, now);
    assert_eq!(status("a"), (Status::Drained, 7, false));
    assert_eq!(store.held["s"].until(), Some(now + SETTLED));
    store.end_guards(now + SETTLED);
    assert_eq!(status("a"), (Status::Passing, 1, false));
    // A directory of the same process says nothing that is not known better.
    store.take(Event::Known(with(&[("a", drained)]).remove(0)), now);
    assert_eq!(status("a"), (Status::Passing, 1, false));
}

#[tokio::test]
async fn a_reset_after_clean_leaves_guards_nobody() {
    let (shared, mut store) = store(Some(Guard::default()));
    let now = Instant::now();
    let ten = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    store.take(reset(vec![state("s", &ten), state("t", &["1"])]), now);
    let left: Vec<Arc<str>> = ten.iter().map(|code| (*code).into()).collect();
    let gone = ServiceState { left, ..ServiceState::empty("s") };
    store.take(reset(vec![gone, state("t", &["1"])]), now);
    assert!(shared.snapshot("s").is_empty() && !shared.snapshot("t").is_guarded());
    assert!(shared.has_left("s", "3") && !shared.has_left("t", "1"));
    store.take(Event::Put(state("s", &["3"])), now);
    store.take(Event::Put(state("s", &[])), now);
    assert!(!shared.has_left("s", "3"), "it has come back, and was lost");
}

#[test]
fn a_slow_disk_does_not_stop_the_directory() {
    // The one thread for what blocks is taken: no write ends before it is given back.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared::new(Scope::All));
        let (events, receiver) = mpsc::channel(1);
        let running =
            tokio::spawn(Store::new(shared.clone(), None, Some(folder.path().to_owned()), restores()).run(receiver));
        events.send(Event::Put(state("s", &["a"]))).await.unwrap();
        shared.version.subscribe().wait_for(|version| *version == 1).await.unwrap();
        let (give_back, taken) = std::sync::mpsc::channel::<()>();
        let disk = tokio::task::spawn_blocking(move || taken.recv());
        for codes in [&["b"], &["c"]] {
            tokio::time::advance(SAVE_AFTER * 2).await;
            let sent = async { events.send(Event::Put(state("s", codes))).await.unwrap() };
            // In turns, not by time: the clock stands still while something blocks.
            let turns = async {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::join!(sent, turns);
            assert!(shared.snapshot("s").find(codes[0]).is_some());
        }
        give_back.send(()).unwrap();
        disk.await.unwrap().unwrap();
        drop(events);
        running.await.unwrap();
        let loaded = disk::load(folder.path(), &Scope::All);
        assert!(loaded[0].snapshot.find("c").is_some(), "the rest is saved at the end: {loaded:?}");
    });
}
