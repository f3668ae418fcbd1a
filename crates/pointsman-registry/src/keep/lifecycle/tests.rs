//! The lifecycle against a registry and a holder that do whatever they can do, and a network that loses replies, doubles them, and brings
//! them late.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// What may happen next.
#[derive(Debug, Clone)]
enum Event {
    Update,
    /// An update to what is wanted already.
    Unchanged,
    Close {
        departure: Departure,
        with_reply: bool,
    },
    Health(bool),
    /// With what goes in between the request and its reply.
    Attempt(Attempt, Option<Box<Event>>),
    Removal(Removal),
    /// A reply comes again, or late.
    Again(prop::sample::Index),
    /// Somebody deletes what is registered.
    Deleted,
    Lapsed,
    Later(u64),
}

/// What comes of an attempt to register.
#[derive(Debug, Clone, Copy)]
enum Attempt {
    Unreachable,
    /// The request is lost.
    NotCarriedOut,
    /// The reply is lost.
    ReplyLost,
    Waits,
    Done,
    /// It is registered, but not with the newest content.
    Rejected,
    /// The registry refuses it for good.
    Refused,
}

#[derive(Debug, Clone, Copy)]
enum Removal {
    Unreachable,
    NotCarriedOut,
    ReplyLost,
    Done,
}

struct World {
    lifecycle: Lifecycle<usize>,
    now: Instant,
    /// The revision that is in the registry.
    exists: Option<u64>,
    updates: u64,
    /// The highest revision that was ever in the registry.
    highest: u64,
    is_healthy: bool,
    is_closing: bool,
    was_refused: bool,
    /// What has come of each reply that was asked for.
    replies: BTreeMap<usize, Vec<bool>>,
    /// The revisions of those that wait for an update.
    revisions: BTreeMap<usize, u64>,
    entered: Vec<bool>,
    past: Vec<Said>,
}

impl World {
    fn new(is_healthy: bool) -> Self {
        let now = Instant::now();
        let health = if is_healthy { Ok(()) } else { Err("down".to_owned()) };
        let instance = Instance::new("s").code("a");
        let lifecycle = Lifecycle::new(Arc::new(instance), health, Some(PATIENCE), Duration::from_secs(1), now);
        Self {
            lifecycle,
            now,
            exists: None,
            updates: 0,
            highest: 0,
            is_healthy,
            is_closing: false,
            was_refused: false,
            replies: BTreeMap::new(),
            revisions: BTreeMap::new(),
            entered: Vec::new(),
            past: Vec::new(),
        }
    }

    fn goal(&self) -> Goal {
        self.lifecycle.goal(self.now).0
    }

    fn reply(&mut self) -> usize {
        let reply = self.replies.len();
        self.replies.insert(reply, Vec::new());
        reply
    }

    fn input(&mut self, input: Input<usize>) {
        self.lifecycle.step(input, self.now);
        for effect in self.lifecycle.effects() {
            match effect {
                Effect::Entered(result) => self.entered.push(result.is_ok()),
                Effect::Reply(reply, result) => {
                    let revision = self.revisions.get(&reply).copied().unwrap_or_default();
                    if result.is_ok() && self.is_healthy {
                        assert!(self.highest >= revision, "an update is confirmed that is not written");
                    }
                    self.replies.entry(reply).or_default().push(result.is_ok());
                }
                Effect::Detached(_) | Effect::Replaced => {}
            }
        }
        assert!(self.replies.values().all(|answers| answers.len() <= 1), "{:?}", self.replies);
        assert!(self.entered.len() <= 1);
        if self.lifecycle.is_registered() || self.goal() == Goal::Registered {
            assert!(self.is_healthy && !self.is_closing);
        }
        if self.goal() == Goal::Over {
            assert_eq!(self.exists, None);
        }
    }

    fn say(&mut self, said: Said) {
        self.past.push(said.clone());
        self.input(Input::Said(said));
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Update => {
                self.updates += 1;
                let weight = 1 + u32::try_from(self.updates).unwrap();
                let (instance, reply) = (Instance::new("s").code("a").weight(weight), self.reply());
                self.revisions.insert(reply, self.updates);
                self.input(Input::Update(Arc::new(instance), reply));
            }
            Event::Unchanged => {
                let (instance, revision) = self.lifecycle.wanted();
                let (instance, reply) = (instance.clone(), self.replies.len());
                self.replies.insert(reply, Vec::new());
                self.revisions.insert(reply, revision);
                self.input(Input::Update(instance, reply));
                assert_eq!(self.lifecycle.wanted().1, revision, "there is nothing to write");
            }
            Event::Close { departure, with_reply } => {
                self.is_closing = true;
                let reply = with_reply.then(|| self.reply());
                self.input(Input::Close(departure, reply));
            }
            Event::Health(is_healthy) => {
                self.is_healthy = is_healthy;
                self.input(Input::Health(if is_healthy { Ok(()) } else { Err("down".to_owned()) }));
            }
            Event::Attempt(attempt, meanwhile) if self.goal() == Goal::Registered => self.attempt(attempt, meanwhile),
            Event::Removal(removal) if matches!(self.goal(), Goal::Removed(_)) => self.removal(removal),
            Event::Again(index) if !self.past.is_empty() => {
                let said = index.get(&self.past).clone();
                // What a registrar tells of the present it has just seen; only replies may be old.
                if matches!(said, Said::Written(_) | Said::NotRemoved(_)) && self.goal() != Goal::Over {
                    self.input(Input::Said(said));
                }
            }
            Event::Deleted if self.exists.is_some() && self.lifecycle.is_registered() => {
                self.exists = None;
                self.say(Said::Gone("deleted".to_owned()));
            }
            Event::Lapsed if self.lifecycle.is_registered() => self.say(Said::Lapsed("late".to_owned())),
            Event::Later(ms) => {
                self.now += Duration::from_millis(ms);
                self.input(Input::Tick);
            }
            _ => {}
        }
    }

    fn attempt(&mut self, attempt: Attempt, meanwhile: Option<Box<Event>>) {
        let lost = |step: &str| Error::unavailable(step.to_owned(), "connection lost".to_owned());
        let wanted = self.lifecycle.wanted().1;
        if matches!(attempt, Attempt::Unreachable) {
            return self.say(Said::Unreachable("away".to_owned()));
        }
        self.say(Said::Connected);
        if matches!(attempt, Attempt::Waits) {
            return self.say(Said::Waits("another has the code".to_owned()));
        }
        self.say(Said::Requested);
        let existed = self.exists;
        if matches!(attempt, Attempt::ReplyLost | Attempt::Done) || attempt_rejects_nothing(attempt, existed, wanted) {
            self.exists = Some(wanted);
            self.highest = self.highest.max(wanted);
        }
        if let Some(event) = meanwhile {
            self.happens(*event);
        }
        match attempt {
            Attempt::NotCarriedOut => self.say(Said::Failed(lost("create"))),
            Attempt::ReplyLost => self.say(Said::Failed(lost("create"))),
            Attempt::Rejected if existed.is_some_and(|revision| revision < wanted) => {
                // What has been updated meanwhile is still to be written.
                self.was_refused |= wanted == self.updates;
                self.say(Said::Registered);
                let error = Error::refused("write".to_owned(), "no".to_owned());
                self.say(Said::Rejected(wanted, error));
            }
            Attempt::Refused => {
                self.was_refused = true;
                self.say(Said::Failed(Error::refused("create".to_owned(), "no".to_owned())));
            }
            _ => {
                self.say(Said::Registered);
                self.say(Said::Written(wanted));
            }
        }
    }

    fn removal(&mut self, removal: Removal) {
        match removal {
            Removal::Unreachable => self.say(Said::Unreachable("away".to_owned())),
            Removal::NotCarriedOut => self.say(Said::NotRemoved("lost".to_owned())),
            Removal::ReplyLost => {
                self.exists = None;
                self.say(Said::NotRemoved("lost".to_owned()));
            }
            Removal::Done => {
                self.exists = None;
                self.say(Said::Removed(Ok(())));
            }
        }
    }

    /// From here on everything works.
    fn settle(&mut self) {
        for _ in 0..20 {
            self.happens(Event::Later(2_000));
            self.happens(Event::Attempt(Attempt::Done, None));
            self.happens(Event::Removal(Removal::Done));
        }
    }
}

/// Whether an attempt that could be rejected is not, because the registry has nothing older of it.
fn attempt_rejects_nothing(attempt: Attempt, existed: Option<u64>, wanted: u64) -> bool {
    matches!(attempt, Attempt::Rejected) && existed.is_none_or(|revision| revision >= wanted)
}

fn event() -> impl Strategy<Value = Event> {
    let departure = prop_oneof![Just(Departure::Left), Just(Departure::Lost)];
    let attempt = prop_oneof![
        Just(Attempt::Unreachable),
        Just(Attempt::NotCarriedOut),
        Just(Attempt::ReplyLost),
        Just(Attempt::Waits),
        Just(Attempt::Done),
        Just(Attempt::Rejected),
        Just(Attempt::Refused),
    ];
    let removal = prop_oneof![
        Just(Removal::Unreachable),
        Just(Removal::NotCarriedOut),
        Just(Removal::ReplyLost),
        Just(Removal::Done),
    ];
    let meanwhile = prop_oneof![
        Just(Event::Update),
        any::<bool>().prop_map(Event::Health),
        Just(Event::Close { departure: Departure::Left, with_reply: true }),
    ];
    prop_oneof![
        4 => Just(Event::Update),
        2 => Just(Event::Unchanged),
        1 => (departure, any::<bool>()).prop_map(|(departure, with_reply)| Event::Close { departure, with_reply }),
        2 => any::<bool>().prop_map(Event::Health),
        8 => (attempt, proptest::option::of(meanwhile)).prop_map(|(attempt, event)| Event::Attempt(attempt, event.map(Box::new))),
        6 => removal.prop_map(Event::Removal),
        2 => any::<prop::sample::Index>().prop_map(Event::Again),
        1 => Just(Event::Deleted),
        1 => Just(Event::Lapsed),
        4 => (0..3_000_u64).prop_map(Event::Later),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_happens_it_ends_where_it_is_wanted(is_healthy: bool, events in prop::collection::vec(event(), 0..60)) {
        let mut world = World::new(is_healthy);
        for event in events {
            world.happens(event);
        }
        world.settle();
        for (reply, answers) in &world.replies {
            prop_assert_eq!(answers.len(), 1, "reply {}", reply);
        }
        let wanted = world.lifecycle.wanted().1;
        if world.is_closing || world.entered == [false] {
            prop_assert_eq!((world.goal(), world.exists), (Goal::Over, None));
            prop_assert_eq!(world.entered.len(), 1);
        } else if world.is_healthy {
            prop_assert_eq!((world.goal(), world.exists), (Goal::Registered, Some(wanted)));
            prop_assert!(world.lifecycle.is_registered());
            prop_assert_eq!(&world.entered, &[true]);
        } else {
            prop_assert_eq!((world.goal(), world.exists), (Goal::Idle, None));
        }
        if !world.was_refused && !world.is_closing && world.entered != [false] {
            prop_assert_eq!(wanted, world.updates, "the newest update counts");
        }
    }
}

#[test]
fn patience_counts_the_time_without_the_registry_and_not_that_in_which_it_waits_for_another() {
    let mut world = World::new(true);
    world.happens(Event::Attempt(Attempt::Waits, None));
    world.happens(Event::Later(60_000));
    assert_eq!(world.goal(), Goal::Registered, "a dead process's session may have to end");
    world.happens(Event::Attempt(Attempt::Unreachable, None));
    assert_eq!(world.goal(), Goal::Registered, "a connection that is cut once is no reason to give up");
    let (_, until) = world.lifecycle.goal(world.now);
    assert_eq!(until, Some(world.now + PATIENCE));
    world.happens(Event::Later(4_999));
    assert!(world.entered.is_empty());
    world.happens(Event::Later(1));
    assert_eq!((world.goal(), world.entered.as_slice()), (Goal::Over, &[false][..]));
}

#[test]
fn without_patience_it_goes_on_for_ever_and_once_registered_as_well() {
    let mut world = World::new(true);
    world.lifecycle.patience = None;
    world.happens(Event::Attempt(Attempt::Unreachable, None));
    world.happens(Event::Later(1_000_000));
    assert_eq!((world.goal(), world.lifecycle.goal(world.now).1), (Goal::Registered, None));
    let mut world = World::new(true);
    world.lifecycle.patience = Some(Duration::MAX);
    world.happens(Event::Attempt(Attempt::Unreachable, None));
    world.happens(Event::Attempt(Attempt::NotCarriedOut, None));
    world.happens(Event::Later(1_000_000));
    assert_eq!(world.goal(), Goal::Registered, "a patience that overflows the clock is no limit");
    let mut world = World::new(true);
    world.happens(Event::Attempt(Attempt::Done, None));
    world.happens(Event::Attempt(Attempt::Unreachable, None));
    world.happens(Event::Later(1_000_000));
    assert_eq!(world.goal(), Goal::Registered);
    world.happens(Event::Attempt(Attempt::Refused, None));
    world.happens(Event::Later(5_000));
    assert_eq!(world.goal(), Goal::Registered);
}

#[test]
fn patience_does_not_count_while_the_check_fails() {
    let mut world = World::new(false);
    world.happens(Event::Later(1_000_000));
    assert_eq!(world.goal(), Goal::Idle);
    world.happens(Event::Health(true));
    world.happens(Event::Attempt(Attempt::Unreachable, None));
    world.happens(Event::Later(4_999));
    assert_eq!(world.goal(), Goal::Registered);
}

#[test]
fn who_waits_for_the_end_is_told_that_it_takes_longer_and_it_is_carried_out_all_the_same() {
    let mut world = World::new(true);
    world.happens(Event::Attempt(Attempt::Done, None));
    world.happens(Event::Close { departure: Departure::Left, with_reply: true });
    assert_eq!(world.goal(), Goal::Removed(Departure::Left));
    world.happens(Event::Removal(Removal::Unreachable));
    assert_eq!(world.replies[&0], [false]);
    world.happens(Event::Removal(Removal::Done));
    assert_eq!((world.goal(), world.exists), (Goal::Over, None));
}

#[test]
fn an_update_that_is_refused_goes_back_to_what_was_accepted() {
    let mut world = World::new(true);
    world.happens(Event::Attempt(Attempt::Done, None));
    world.happens(Event::Update);
    world.happens(Event::Attempt(Attempt::Rejected, None));
    assert_eq!((world.lifecycle.wanted().1, &world.replies[&0]), (0, &vec![false]));
    world.happens(Event::Update);
    assert_eq!(world.lifecycle.wanted().1, 2, "a revision is never used twice");
}

#[test]
fn an_update_that_changes_nothing_is_answered_as_soon_as_the_registry_has_what_is_wanted() {
    let mut world = World::new(true);
    world.happens(Event::Unchanged);
    assert_eq!(world.replies[&0], [false; 0], "it is not registered yet");
    world.happens(Event::Attempt(Attempt::Done, None));
    world.happens(Event::Unchanged);
    world.happens(Event::Update);
    world.happens(Event::Unchanged);
    assert_eq!((&world.replies[&0], &world.replies[&1]), (&vec![true], &vec![true]));
    assert_eq!(world.replies[&3], [false; 0], "the update before is not written yet");
    world.happens(Event::Attempt(Attempt::Done, None));
    assert_eq!((&world.replies[&2], &world.replies[&3]), (&vec![true], &vec![true]));
}

#[test]
fn whoever_keeps_deleting_what_is_registered_meets_longer_and_longer_pauses() {
    let mut world = World::new(true);
    let mut pauses = Vec::new();
    for _ in 0..4 {
        world.happens(Event::Attempt(Attempt::Done, None));
        world.happens(Event::Deleted);
        let (goal, until) = world.lifecycle.goal(world.now);
        let pause = until.unwrap() - world.now;
        assert_eq!(goal, Goal::Idle);
        pauses.push(pause);
        world.now += pause;
    }
    assert!(pauses[0] <= Duration::from_millis(100) && pauses[3] >= Duration::from_millis(400), "{pauses:?}");
    world.happens(Event::Attempt(Attempt::Done, None));
    world.happens(Event::Later(1_000));
    world.happens(Event::Deleted);
    assert_eq!(world.goal(), Goal::Registered, "back at once");
}

#[test]
fn what_is_gone_before_it_was_ever_registered_counts_as_a_failure() {
    let mut world = World::new(true);
    for _ in 0..100 {
        world.say(Said::Connected);
        world.say(Said::Gone("the agent has expired it".to_owned()));
        if world.goal() == Goal::Over {
            break;
        }
        world.happens(Event::Later(1_000));
    }
    assert_eq!(world.entered, [false]);
}

#[test]
fn a_check_that_fails_is_not_held_up_by_a_pause() {
    let mut world = World::new(true);
    world.happens(Event::Attempt(Attempt::Done, None));
    world.happens(Event::Attempt(Attempt::NotCarriedOut, None));
    assert_eq!(world.goal(), Goal::Idle);
    world.happens(Event::Health(false));
    assert_eq!(world.goal(), Goal::Removed(Departure::Lost));
}

#[test]
fn all_who_close_are_answered_when_it_is_done() {
    let mut world = World::new(true);
    world.happens(Event::Attempt(Attempt::Done, None));
    for _ in 0..2 {
        world.happens(Event::Close { departure: Departure::Left, with_reply: true });
    }
    assert_eq!(world.replies.values().map(Vec::len).sum::<usize>(), 0);
    world.happens(Event::Removal(Removal::Done));
    assert!(world.replies.values().all(|answers| answers == &[true]));
}
