//! Who is registered, and who is master: the memory registry's state, without tasks or channels.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use pointsman_core::{Instance, ObservedInstance, Role, StaleTerm, Term};
use tokio::time::Instant;

use super::expiry::Expiry;
use super::followers::Followers;
use super::terms::Terms;
use crate::backend::{Scope, ServiceState};
use crate::overrides::{
    CLEARED_AT_ONCE, ClearedOverrides, OVERRIDES_KEPT, Override, OverrideChange, OverrideOf, Overrides,
};
use crate::registration::Departure;

/// The order in which instances have registered, over all services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MemberId(u64);

/// Everything that the memory registry holds. `R` is what each member's roles are reported through.
#[derive(Debug)]
pub(super) struct State<R> {
    /// Those that have members, or of which something is set.
    services: HashMap<Arc<str>, Service<R>>,
    /// Counts every change: the revision, and the terms.
    clock: u64,
    /// What it was made to begin above.
    base: u64,
    new_roles: Vec<(R, Role)>,
    terms: Terms,
    expiry: Expiry,
    /// Something is stored of which only that nothing is set.
    keeps_empty: bool,
    pub(super) followers: Followers,
}

#[derive(Debug)]
struct Service<R> {
    /// By code, as they are told.
    members: BTreeMap<Arc<str>, Member<R>>,
    /// The codes, in the order in which the members have registered.
    order: BTreeMap<MemberId, Arc<str>>,
    /// The code of the master.
    master: Option<Arc<str>>,
    overrides: Overrides,
    revision: u64,
}

#[derive(Debug)]
struct Member<R> {
    id: MemberId,
    instance: Arc<ObservedInstance>,
    /// Who has registered it, where the same may take over from itself.
    holder: Option<Arc<str>>,
    report: R,
}

/// Who has a code already.
#[derive(Debug)]
pub(super) enum Taken {
    /// The same holder, by another registration.
    ByTheSame,
    /// Somebody else: who.
    ByAnother(String),
}

impl<R> Default for State<R> {
    fn default() -> Self {
        let (services, new_roles) = (HashMap::new(), Vec::new());
        let (terms, expiry, followers) = (Terms::default(), Expiry::default(), Followers::default());
        Self { services, clock: 0, base: 0, new_roles, terms, expiry, keeps_empty: false, followers }
    }
}

impl<R> State<R> {
    /// Counts on from `clock`, if that is higher: terms and revisions rise also over those of a process before this one.
    pub(super) fn rise_above(&mut self, clock: u64) {
        self.clock = self.clock.max(clock);
        self.base = self.base.max(clock);
    }

    /// The highest that it was made to rise above.
    pub(super) fn term_base(&self) -> Term {
        Term(self.base)
    }
}

impl<R> Default for Service<R> {
    fn default() -> Self {
        let (members, order, overrides) = (BTreeMap::new(), BTreeMap::new(), Overrides::new());
        Self { members, order, master: None, overrides, revision: 0 }
    }
}

impl<R: Clone> State<R> {
    /// Adds an instance, as master if there is none and it is no observer; in the place of one that the same holder has registered, whose report is
    /// returned, if this one takes over.
    pub(super) fn join(
        &mut self,
        instance: impl Into<ObservedInstance>,
        holder: Option<Arc<str>>,
        takes_over: bool,
        report: R,
    ) -> Result<(MemberId, Option<R>), Taken> {
        let mut instance: ObservedInstance = instance.into();
        let service = self.services.entry(instance.service.clone()).or_default();
        if let Some(there) = service.members.get(&instance.code)
            && (holder.is_none() || there.holder != holder)
        {
            let address = there.instance.address.as_deref().unwrap_or("no address");
            return Err(Taken::ByAnother(format!("an instance of this process ({address})")));
        }
        if !takes_over && service.members.contains_key(&instance.code) {
            return Err(Taken::ByTheSame);
        }
        let before = service.remove(&instance.code);
        self.clock += 1;
        let (id, code) = (MemberId(self.clock), instance.code.clone());
        // The mastership goes on when the same holder takes it over.
        let inherited = before.as_ref().and_then(|before| before.instance.role.term());
        instance.role = match inherited {
            _ if instance.observer => Role::Normal,
            Some(term) => Role::Master(term),
            None if service.master.is_some() => Role::Normal,
            None => Role::Master(Term(self.clock)),
        };
        self.new_roles.push((report.clone(), instance.role));
        if instance.role.is_master() {
            service.master = Some(code.clone());
        }
        service.revision = self.clock;
        self.followers.note_joined(&instance.service, &code);
        if service.overrides.contains_key(&code) {
            self.expiry.set(&instance.service, &code, None);
        }
        service.order.insert(id, code.clone());
        service.members.insert(code, Member { id, instance: Arc::new(instance), holder, report });
        if service.master.is_none() {
            self.new_roles.extend(service.promote(self.clock));
        }
        self.new_roles.extend(service.hand_on(self.clock));
        Ok((id, before.map(|member| member.report)))
    }

    /// Removes an instance. If it was master, the one that has been registered for the longest takes over.
    pub(super) fn leave(&mut self, name: &Arc<str>, id: MemberId, departure: Departure, now: Instant) {
        let Some(service) = self.services.get_mut(name) else { return };
        // Another may have taken its place.
        let Some(code) = service.order.get(&id).cloned() else { return };
        let was_master = service.master.as_ref() == Some(&code);
        service.remove(&code);
        self.clock += 1;
        service.revision = self.clock;
        self.followers.note_gone(name, &code, departure);
        if was_master {
            self.new_roles.extend(service.promote(self.clock));
        }
        self.note_override(name, &code, now);
        self.forget_empty(name);
    }

    /// The role of an instance; `None` if it is not registered any more.
    pub(super) fn role(&self, service: &str, id: MemberId) -> Option<Role> {
        let service = self.services.get(service)?;
        Some(service.members.get(service.order.get(&id)?)?.instance.role)
    }

    /// Forgets all services, without a word to those who follow them.
    #[cfg(feature = "testing")]
    pub(super) fn empty(&mut self) {
        self.services.clear();
        self.expiry = Expiry::default();
    }

    /// The instances of whose reports this holds.
    #[cfg(feature = "testing")]
    pub(super) fn members(&self, mut holds: impl FnMut(&R) -> bool) -> Vec<(Arc<str>, MemberId)> {
        let of_service = |(name, service): (&Arc<str>, &Service<R>)| {
            let members = service.members.values().filter(|member| holds(&member.report));
            members.map(|member| (name.clone(), member.id)).collect::<Vec<_>>()
        };
        self.services.iter().flat_map(of_service).collect()
    }

    /// Replaces what an instance has registered.
    pub(super) fn update(&mut self, service: &str, id: MemberId, instance: Instance) {
        let Some(service) = self.services.get_mut(service) else { return };
        let Some(member) = service.by_id(id) else { return };
        let ObservedInstance { role, observer, .. } = *member.instance;
        let mut updated = ObservedInstance::new(instance, role);
        updated.observer = observer;
        member.instance = Arc::new(updated);
        self.clock += 1;
        service.revision = self.clock;
        self.new_roles.extend(service.hand_on(self.clock));
    }

    /// Hands the mastership over; the old master queues up behind the others. `false` if it is not master.
    pub(super) fn resign(&mut self, service: &str, id: MemberId) -> bool {
        let Some(service) = self.services.get_mut(service) else { return false };
        let Some(member) = service.by_id(id).filter(|member| member.instance.role.is_master()) else {
            return false;
        };
        set_role(member, Role::Normal);
        self.new_roles.push((member.report.clone(), Role::Normal));
        self.clock += 1;
        service.revision = self.clock;
        // The drained come last: also after the one that resigns.
        let others = || service.candidates().filter(|member| member.id != id);
        let undrained = others().find(|member| !service.is_drained(member));
        let is_drained = || service.in_order().any(|member| member.id == id && service.is_drained(member));
        let successor = undrained.or_else(|| others().next().filter(|_| is_drained())).map_or(id, |member| member.id);
        self.new_roles.extend(service.promote_one(successor, self.clock));
        true
    }

    /// Changes what an operator has set; an empty override is stored where `keeps_empty`. A master that is drained hands over, where another can take it.
    pub(super) fn set_override(
        &mut self,
        name: &Arc<str>,
        code: &Arc<str>,
        change: OverrideChange,
        keeps_empty: bool,
        now: Instant,
    ) {
        let service = self.services.entry(name.clone()).or_default();
        self.clock += 1;
        service.revision = self.clock;
        let set = service.overrides.get(code).copied().unwrap_or_default().changed(change);
        if set.is_empty() && !keeps_empty {
            service.overrides.remove(code);
        } else {
            service.overrides.insert(code.clone(), set);
        }
        self.new_roles.extend(service.hand_on(self.clock));
        self.note_override(name, code, now);
        self.forget_empty(name);
        self.keeps_empty |= keeps_empty;
        if !keeps_empty && std::mem::take(&mut self.keeps_empty) {
            self.clear_empty();
        }
    }

    /// Forgets of which instances nothing is set: nobody restores any more what was set before.
    fn clear_empty(&mut self) {
        let has_empty = |service: &Service<R>| service.overrides.values().any(|set| set.is_empty());
        let concerned = self.services.iter().filter(|(_, service)| has_empty(service)).map(|(name, _)| name.clone());
        for name in concerned.collect::<Vec<_>>() {
            if let Some(service) = self.services.get_mut(&name) {
                service.overrides.retain(|code, set| {
                    if set.is_empty() {
                        self.expiry.set(&name, code, None);
                    }
                    !set.is_empty()
                });
            }
            self.followers.note(&name);
            self.forget_empty(&name);
        }
    }

    /// Sets what was set in a registry before this one for a code that was last registered there at `seen`, unless something is set already.
    pub(super) fn restore_override(&mut self, name: &Arc<str>, code: &Arc<str>, set: Override, seen: Instant) {
        let service = self.services.entry(name.clone()).or_default();
        self.clock += 1;
        service.revision = self.clock;
        if !service.overrides.contains_key(code) {
            service.overrides.insert(code.clone(), set);
            self.new_roles.extend(service.hand_on(self.clock));
            self.note_override(name, code, seen);
        }
    }

    /// Decides when what is set for a code is forgotten that was last registered, or set anything for, at `seen`.
    fn note_override(&mut self, name: &Arc<str>, code: &Arc<str>, seen: Instant) {
        let is_kept =
            |service: &&Service<R>| service.overrides.contains_key(code) && !service.members.contains_key(code);
        let expires = self.services.get(name).filter(is_kept).map(|_| seen + OVERRIDES_KEPT);
        self.expiry.set(name, code, expires);
    }

    /// Forgets what is set for codes that have been gone for too long.
    pub(super) fn expire_overrides(&mut self, now: Instant) {
        for (name, code) in self.expiry.take_due(now) {
            tracing::info!(service = %name, %code, "override expired: the code has not been registered for long");
            self.forget_override(&name, &code, false);
        }
    }

    /// What is set, of one service or of all, in the order of services and codes.
    pub(super) fn overrides(&self, service: Option<&str>) -> Vec<OverrideOf> {
        let mut services: Vec<_> =
            self.services.iter().filter(|(name, _)| service.is_none_or(|service| *service == ***name)).collect();
        services.sort_by_key(|(name, _)| *name);
        let of_service = |(name, service): (&Arc<str>, &Service<R>)| {
            let set = service.overrides.iter().filter(|(_, set)| !set.is_empty());
            set.map(|(code, set)| set.of(name, code, service.members.contains_key(code))).collect::<Vec<_>>()
        };
        services.into_iter().flat_map(of_service).collect()
    }

    /// Forgets what is set for codes that are not registered; that nothing is set is stored where `keeps_empty`.
    pub(super) fn clear_gone(&mut self, service: Option<&str>, keeps_empty: bool) -> ClearedOverrides {
        let mut gone = self.overrides(service);
        gone.retain(|set| !set.registered);
        let remaining = gone.len().saturating_sub(CLEARED_AT_ONCE);
        gone.truncate(CLEARED_AT_ONCE);
        for OverrideOf { service, code, .. } in &gone {
            self.forget_override(service, code, keeps_empty);
        }
        self.keeps_empty |= keeps_empty && !gone.is_empty();
        ClearedOverrides { cleared: gone, remaining }
    }

    fn forget_override(&mut self, name: &Arc<str>, code: &Arc<str>, keeps_empty: bool) {
        let Some(service) = self.services.get_mut(name) else { return };
        self.clock += 1;
        service.revision = self.clock;
        if keeps_empty {
            service.overrides.insert(code.clone(), Override::default());
        } else {
            service.overrides.remove(code);
            self.expiry.set(name, code, None);
        }
        self.followers.note(name);
        self.forget_empty(name);
    }

    /// Services may be named anew with each start of something: what is empty is not kept.
    fn forget_empty(&mut self, name: &Arc<str>) {
        if self.services.get(name).is_some_and(|service| service.members.is_empty() && service.overrides.is_empty()) {
            self.services.remove(name);
            self.terms.retire(name, |service| self.services.contains_key(service));
        }
    }

    /// Accepts a term, unless a higher one was granted or accepted; returns the highest. `None`: the terms of too many services are remembered.
    pub(super) fn check_term(&mut self, service: &str, term: Term) -> Option<Result<Term, StaleTerm>> {
        self.terms.check(service, term)
    }

    /// Who has a new role since the last call, in order; all are of this service.
    pub(super) fn take_new_roles(&mut self, service: &Arc<str>) -> Vec<(R, Role)> {
        if let Some(granted) = self.new_roles.iter().rev().find_map(|(_, role)| role.term()) {
            self.terms.grant(service, granted);
        }
        std::mem::take(&mut self.new_roles)
    }

    /// Everything that a scope holds, with who has left cleanly a while ago and is not there.
    pub(super) fn read_all(&self, scope: &Scope) -> Vec<ServiceState> {
        let mut departures = self.followers.departures();
        let here = self.services.keys().filter(|service| scope.contains(service));
        let mut states: Vec<_> =
            here.map(|name| self.read(name, departures.remove(name).unwrap_or_default())).collect();
        let vanished = departures.into_iter().filter(|(service, _)| scope.contains(service));
        states.extend(vanished.map(|(service, left)| self.read(&service, left)));
        states
    }

    /// One service as it is now, in the order of the codes; `left` are codes that have left cleanly, and may be back.
    pub(super) fn read(&self, name: &Arc<str>, left: BTreeSet<Arc<str>>) -> ServiceState {
        let Some(service) = self.services.get(name) else {
            let left = left.into_iter().collect();
            return ServiceState { revision: self.clock, left, ..ServiceState::empty(name.clone()) };
        };
        ServiceState {
            revision: service.revision,
            instances: service.members.values().map(|member| member.instance.clone()).collect(),
            overrides: service.overrides.clone(),
            left: left.into_iter().filter(|code| !service.members.contains_key(code)).collect(),
            ..ServiceState::empty(name.clone())
        }
    }
}

impl<R: Clone> Service<R> {
    fn by_id(&mut self, id: MemberId) -> Option<&mut Member<R>> {
        self.members.get_mut(self.order.get(&id)?)
    }

    /// The members in the order in which they have registered.
    fn in_order(&self) -> impl Iterator<Item = &Member<R>> {
        self.order.values().filter_map(|code| self.members.get(code))
    }

    /// The members that may become master.
    fn candidates(&self) -> impl Iterator<Item = &Member<R>> {
        self.in_order().filter(|member| !member.instance.observer)
    }

    fn remove(&mut self, code: &Arc<str>) -> Option<Member<R>> {
        let member = self.members.remove(code)?;
        self.order.remove(&member.id);
        self.master.take_if(|master| master == code);
        Some(member)
    }

    fn promote(&mut self, term: u64) -> Option<(R, Role)> {
        let first = self.first_undrained().or_else(|| self.candidates().next().map(|member| member.id))?;
        self.promote_one(first, term)
    }

    /// Lets another be master if the one who is, is drained, and the other is not.
    fn hand_on(&mut self, term: u64) -> Vec<(R, Role)> {
        let master = self.master.as_ref().and_then(|code| self.members.get(code));
        let drained = master.filter(|master| self.is_drained(master)).map(|master| master.id);
        let (Some(drained), Some(next)) = (drained, self.first_undrained()) else { return Vec::new() };
        let mut roles = Vec::new();
        if let Some(member) = self.by_id(drained) {
            set_role(member, Role::Normal);
            roles.push((member.report.clone(), Role::Normal));
        }
        roles.extend(self.promote_one(next, term));
        roles
    }

    fn first_undrained(&self) -> Option<MemberId> {
        self.candidates().find(|member| !self.is_drained(member)).map(|member| member.id)
    }

    fn is_drained(&self, member: &Member<R>) -> bool {
        let set = self.overrides.get(&member.instance.code).copied().unwrap_or_default();
        !set.apply(member.instance.clone()).takes_work()
    }

    fn promote_one(&mut self, id: MemberId, term: u64) -> Option<(R, Role)> {
        let code = self.order.get(&id)?.clone();
        let member = self.members.get_mut(&code)?;
        let role = Role::Master(Term(term));
        set_role(member, role);
        self.master = Some(code);
        Some((member.report.clone(), role))
    }
}

fn set_role<R>(member: &mut Member<R>, role: Role) {
    Arc::make_mut(&mut member.instance).role = role;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever happens, a service with members that are no observers has exactly one of them as master, and terms only rise.
        #[test]
        fn one_master_and_rising_terms(steps in proptest::collection::vec((0..8_u8, 0..8_usize), 1..60)) {
            let mut state = State::default();
            let (mut members, mut codes) = (Vec::new(), Vec::new());
            let mut highest = 0;
            for (step, which) in steps {
                match step {
                    0 | 1 => {
                        let instance = Instance::new("s").weight(u32::from(step));
                        codes.push(instance.code.clone());
                        members.push(state.join(instance, None, true, ()).unwrap().0);
                    }
                    7 => {
                        let mut observer = ObservedInstance::from(Instance::new("s"));
                        observer.observer = true;
                        codes.push(observer.code.clone());
                        members.push(state.join(observer, None, true, ()).unwrap().0);
                    }
                    4..=6 if !codes.is_empty() => {
                        let change = [OverrideChange::Drain, OverrideChange::Undrain, OverrideChange::Weight(Some(1))];
                        let (code, change) = (&codes[which % codes.len()], change[usize::from(step) - 4]);
                        state.set_override(&"s".into(), code, change, which % 2 == 0, Instant::now());
                    }
                    2 if !members.is_empty() => state.leave(&"s".into(), members.swap_remove(which % members.len()), Departure::Left, Instant::now()),
                    3 if !members.is_empty() => { state.resign("s", members[which % members.len()]); }
                    _ => {}
                }
                let read = state.read(&"s".into(), BTreeSet::new());
                let terms: Vec<_> = read.instances.iter().filter_map(|i| i.role.term()).collect();
                prop_assert_eq!(read.instances.len(), members.len());
                let candidates: Vec<_> = read.instances.iter().filter(|instance| !instance.observer).collect();
                prop_assert_eq!(terms.len(), usize::from(!candidates.is_empty()));
                prop_assert!(read.instances.iter().all(|instance| !(instance.observer && instance.role.is_master())));
                let set = |instance: &Arc<ObservedInstance>| read.overrides.get(&instance.code).copied().unwrap_or_default();
                let takes_work = |i: &&Arc<ObservedInstance>| set(i).apply(Arc::clone(i)).takes_work();
                let working: Vec<_> = candidates.into_iter().filter(takes_work).collect();
                let has_working_master = working.iter().any(|instance| instance.role.is_master());
                prop_assert_eq!(has_working_master, !working.is_empty(), "no drained master where another could be");
                if let Some(term) = terms.first() {
                    prop_assert!(term.0 >= highest);
                    highest = term.0;
                }
            }
        }
    }

    #[test]
    fn what_is_cleared_in_a_young_registry_is_not_restored() {
        for (keeps_empty, is_restored) in [(true, false), (false, true)] {
            let (mut state, service) = (State::<()>::default(), "s".into());
            state.set_override(&service, &"a".into(), OverrideChange::Undrain, keeps_empty, Instant::now());
            state.restore_override(&service, &"a".into(), Override { drained: true, weight: None }, Instant::now());
            let set = state.read(&"s".into(), BTreeSet::new()).overrides["a"];
            assert_eq!(set.drained, is_restored);
        }
    }

    #[test]
    fn what_was_cleared_in_a_young_registry_is_forgotten_when_it_is_settled() {
        let mut state = State::<()>::default();
        let follower = state.followers.add(Scope::All, Arc::default());
        for number in 0..10 {
            let service = format!("job-{number}").into();
            state.set_override(&service, &"a".into(), OverrideChange::Drain, true, Instant::now());
            state.set_override(&service, &"a".into(), OverrideChange::Undrain, true, Instant::now());
        }
        assert_eq!(state.services.len(), 10);
        state.set_override(&"s".into(), &"a".into(), OverrideChange::Drain, false, Instant::now());
        assert_eq!((state.services.len(), state.followers.waiting()), (1, 10));
        assert!(state.followers.next(follower).is_some());
    }

    #[test]
    fn who_leaves_cleanly_is_named_until_it_is_back() {
        let (mut state, service) = (State::default(), Arc::<str>::from("s"));
        let join = |state: &mut State<()>| state.join(Instance::new("s").code("a"), None, true, ()).unwrap().0;
        let follower = state.followers.add(Scope::All, Arc::default());
        let next = |state: &mut State<()>| state.followers.next(follower);
        let a = join(&mut state);
        state.leave(&service, a, Departure::Left, Instant::now());
        assert_eq!(next(&mut state), Some((service.clone(), ["a".into()].into())));
        assert_eq!(next(&mut state), None);
        let a = join(&mut state);
        state.leave(&service, a, Departure::Left, Instant::now());
        let a = join(&mut state);
        assert_eq!(next(&mut state), Some((service.clone(), BTreeSet::new())));
        assert!(state.read_all(&Scope::All)[0].left.is_empty(), "it is there");
        state.leave(&service, a, Departure::Left, Instant::now());
        assert_eq!(state.read_all(&Scope::All)[0].left, ["a".into()], "for those who begin now");
        let a = join(&mut state);
        state.leave(&service, a, Departure::Lost, Instant::now());
        state.followers.note(&service);
        assert_eq!(next(&mut state), Some((service, BTreeSet::new())));
        assert!(state.read_all(&Scope::All).is_empty());
    }

    #[test]
    fn what_has_vanished_is_forgotten() {
        let mut state = State::<()>::default();
        let follower = state.followers.add(Scope::one("followed"), Arc::default());
        for number in 0..20_000 {
            let service: Arc<str> = format!("service-{number}").into();
            let id = state.join(Instance::new(service.clone()).code("a"), None, true, ()).unwrap().0;
            state.set_override(&service, &"a".into(), OverrideChange::Drain, false, Instant::now());
            state.leave(&service, id, Departure::Left, Instant::now());
            state.set_override(&service, &"a".into(), OverrideChange::Undrain, false, Instant::now());
            state.take_new_roles(&service);
            state.followers.note(&service);
        }
        assert_eq!((state.services.len(), state.followers.waiting()), (0, 0));
        assert!(state.terms.len() < 10_000, "{}", state.terms.len());
        assert_eq!(state.followers.next(follower), None);
    }

    #[test]
    fn what_is_set_for_a_code_is_forgotten_days_after_it_was_last_there() {
        let (mut state, service, begin) = (State::<()>::default(), Arc::<str>::from("s"), Instant::now());
        let (a, other) = (Arc::<str>::from("a"), Arc::<str>::from("b"));
        let codes = |state: &State<()>| Vec::from_iter(state.overrides(None).into_iter().map(|set| set.code));
        state.set_override(&service, &a, OverrideChange::Drain, false, begin);
        state.restore_override(&service, &other, Override { drained: true, weight: None }, begin);
        let id = state.join(Instance::new("s").code("a"), None, true, ()).unwrap().0;
        state.expire_overrides(begin + OVERRIDES_KEPT - Duration::from_secs(1));
        assert_eq!(codes(&state), [a.clone(), other]);
        state.expire_overrides(begin + OVERRIDES_KEPT);
        assert_eq!(codes(&state), std::slice::from_ref(&a), "the one that is registered is kept");
        let left = begin + OVERRIDES_KEPT * 3;
        state.leave(&service, id, Departure::Left, left);
        state.expire_overrides(left + OVERRIDES_KEPT - Duration::from_secs(1));
        assert_eq!(codes(&state), std::slice::from_ref(&a));
        // What is set anew counts from then.
        let set = left + OVERRIDES_KEPT / 2;
        state.set_override(&service, &a, OverrideChange::Weight(Some(3)), false, set);
        state.expire_overrides(left + OVERRIDES_KEPT);
        assert_eq!(codes(&state), [a]);
        let follower = state.followers.add(Scope::All, Arc::default());
        state.expire_overrides(set + OVERRIDES_KEPT);
        assert_eq!((state.services.len(), state.expiry.len()), (0, 0));
        assert!(state.followers.next(follower).is_some(), "it is told");
    }

    #[test]
    fn what_is_set_for_codes_that_are_gone_is_cleared_at_once() {
        let (mut state, service, now) = (State::<()>::default(), Arc::<str>::from("s"), Instant::now());
        for number in 0..CLEARED_AT_ONCE + 2 {
            state.set_override(&service, &format!("gone-{number:04}").into(), OverrideChange::Drain, false, now);
        }
        state.set_override(&service, &"a".into(), OverrideChange::Drain, false, now);
        let id = state.join(Instance::new("s").code("a"), None, true, ()).unwrap().0;
        assert!(state.clear_gone(Some("other"), false).cleared.is_empty());
        let cleared = state.clear_gone(None, false);
        assert_eq!((cleared.cleared.len(), cleared.remaining), (CLEARED_AT_ONCE, 2));
        assert_eq!(&*cleared.cleared[0].code, "gone-0000");
        assert_eq!(state.clear_gone(Some("s"), true).cleared.len(), 2);
        assert_eq!(state.overrides(None).len(), 1, "the one that is registered");
        state.restore_override(&service, &"gone-1001".into(), Override { drained: true, weight: None }, now);
        assert_eq!(state.overrides(None).len(), 1, "what was cleared in a young registry is not restored");
        assert_eq!(state.expiry.len(), 2, "of which only that nothing is set is forgotten as well");
        state.leave(&service, id, Departure::Left, now);
        state.expire_overrides(now + OVERRIDES_KEPT);
        assert_eq!((state.services.len(), state.expiry.len()), (0, 0));
    }
}
