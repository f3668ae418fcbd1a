//! Who is registered, and who is master: the memory registry's state, without tasks or channels.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use pointsman_core::{Instance, Role, StaleTerm, Term};

use crate::backend::ServiceState;
use crate::overrides::{Override, OverrideChange, Overrides};
use crate::registration::Departure;

/// The order in which instances have registered, over all services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MemberId(u64);

/// Everything that the memory registry holds. `R` is what each member's roles are reported through.
#[derive(Debug)]
pub(crate) struct State<R> {
    services: HashMap<Arc<str>, Service<R>>,
    /// Counts every change: the revision, and the terms.
    clock: u64,
    new_roles: Vec<(R, Role)>,
    /// By service: the highest term that was granted, or accepted since.
    terms: HashMap<Arc<str>, Term>,
}

#[derive(Debug)]
struct Service<R> {
    members: BTreeMap<MemberId, Member<R>>,
    overrides: Overrides,
    /// The codes that left cleanly and have not come back, and at which revision; the newest at the end.
    left: VecDeque<(u64, Arc<str>)>,
    revision: u64,
}

#[derive(Debug)]
struct Member<R> {
    instance: Arc<Instance>,
    /// Who has registered it, where the same may take over from itself.
    holder: Option<Arc<str>>,
    report: R,
}

/// Maximum number of clean leavers of one service that are remembered for followers who read later.
const LEFT: usize = 4096;
/// Maximum number of services of which a term is remembered for nothing but that it was checked.
const TERMS: usize = 65_536;

impl<R> Default for State<R> {
    fn default() -> Self {
        Self { services: HashMap::new(), clock: 0, new_roles: Vec::new(), terms: HashMap::new() }
    }
}

impl<R> State<R> {
    /// Counts on from `clock`, if that is higher: terms and revisions rise also over those of a process before this one.
    pub(crate) fn rise_above(&mut self, clock: u64) {
        self.clock = self.clock.max(clock);
    }
}

impl<R> Default for Service<R> {
    fn default() -> Self {
        Self { members: BTreeMap::new(), overrides: Overrides::new(), left: VecDeque::new(), revision: 0 }
    }
}

impl<R: Clone> State<R> {
    /// Adds an instance, as master if there is none; in the place of one that the same holder has registered, whose report is
    /// returned. `Err` names who has the code already.
    pub(crate) fn join(
        &mut self,
        mut instance: Instance,
        holder: Option<Arc<str>>,
        report: R,
    ) -> Result<(MemberId, Option<R>), String> {
        let service = self.services.entry(instance.service.clone()).or_default();
        let (mut before, mut inherited) = (None, None);
        if let Some((id, there)) = service.members.iter().find(|(_, member)| member.instance.code == instance.code) {
            if holder.is_none() || there.holder != holder {
                let address = there.instance.address.as_deref().unwrap_or("no address");
                return Err(format!("an instance of this process ({address})"));
            }
            let id = *id;
            inherited = there.instance.role.term();
            before = service.members.remove(&id).map(|member| member.report);
        }
        self.clock += 1;
        let id = MemberId(self.clock);
        let has_master = service.members.values().any(|member| member.instance.role.is_master());
        let role = || if has_master { Role::Normal } else { Role::Master(Term(self.clock)) };
        // The mastership goes on when the same holder takes it over.
        instance.role = inherited.map_or_else(role, Role::Master);
        self.new_roles.push((report.clone(), instance.role));
        service.revision = self.clock;
        service.left.retain(|(_, code)| *code != instance.code);
        service.members.insert(id, Member { instance: Arc::new(instance), holder, report });
        self.new_roles.extend(service.hand_on(self.clock));
        Ok((id, before))
    }

    /// Removes an instance. If it was master, the one that has been registered for the longest takes over.
    pub(crate) fn leave(&mut self, service: &str, id: MemberId, departure: Departure) {
        let Some(service) = self.services.get_mut(service) else { return };
        // Another may have taken its place.
        let Some(member) = service.members.remove(&id) else { return };
        self.clock += 1;
        service.revision = self.clock;
        if departure == Departure::Left {
            service.left.push_back((self.clock, member.instance.code.clone()));
            if service.left.len() > LEFT {
                service.left.pop_front();
            }
        }
        if member.instance.role.is_master() {
            self.new_roles.extend(service.promote(self.clock));
        }
    }

    /// Replaces what an instance has registered.
    pub(crate) fn update(&mut self, service: &str, id: MemberId, mut instance: Instance) {
        let Some(service) = self.services.get_mut(service) else { return };
        let Some(member) = service.members.get_mut(&id) else { return };
        self.clock += 1;
        service.revision = self.clock;
        instance.role = member.instance.role;
        member.instance = Arc::new(instance);
        self.new_roles.extend(service.hand_on(self.clock));
    }

    /// Hands the mastership over; the old master queues up behind the others. `false` if it is not master.
    pub(crate) fn resign(&mut self, service: &str, id: MemberId) -> bool {
        let Some(service) = self.services.get_mut(service) else { return false };
        let Some(member) = service.members.get_mut(&id).filter(|member| member.instance.role.is_master()) else {
            return false;
        };
        self.clock += 1;
        service.revision = self.clock;
        set_role(member, Role::Normal);
        self.new_roles.push((member.report.clone(), Role::Normal));
        // The drained come last: also after the one that resigns.
        let others = || service.members.iter().filter(|(other, _)| **other != id);
        let undrained = others().find(|(_, member)| !service.is_drained(member));
        let anybody =
            || others().next().filter(|_| service.members.get(&id).is_some_and(|own| service.is_drained(own)));
        let successor = undrained.or_else(anybody).map_or(id, |(other, _)| *other);
        self.new_roles.extend(service.promote_one(successor, self.clock));
        true
    }

    /// Changes what an operator has set; an empty override is stored where `keeps_empty`. A master that is drained hands over, where another can take it.
    pub(crate) fn set_override(&mut self, service: &Arc<str>, code: &str, change: OverrideChange, keeps_empty: bool) {
        let service = self.services.entry(service.clone()).or_default();
        self.clock += 1;
        service.revision = self.clock;
        let set = service.overrides.get(code).copied().unwrap_or_default().changed(change);
        if set.is_empty() && !keeps_empty {
            service.overrides.remove(code);
        } else {
            service.overrides.insert(code.into(), set);
        }
        self.new_roles.extend(service.hand_on(self.clock));
    }

    /// Sets what was set in a registry before this one, unless something is set already.
    pub(crate) fn restore_override(&mut self, service: &Arc<str>, code: &str, set: Override) {
        let service = self.services.entry(service.clone()).or_default();
        self.clock += 1;
        service.revision = self.clock;
        service.overrides.entry(code.into()).or_insert(set);
        self.new_roles.extend(service.hand_on(self.clock));
    }

    /// Accepts a term, unless a higher one was granted or accepted; returns the highest. `None`: the terms of too many services are remembered.
    pub(crate) fn check_term(&mut self, service: &str, term: Term) -> Option<Result<Term, StaleTerm>> {
        match self.terms.get(service) {
            Some(seen) if *seen > term => return Some(Err(StaleTerm { offered: term, seen: *seen })),
            None if self.terms.len() >= TERMS => return None,
            _ => {}
        }
        self.terms.insert(service.into(), term);
        Some(Ok(term))
    }

    /// Who has a new role since the last call, in order; all are of this service.
    pub(crate) fn take_new_roles(&mut self, service: &Arc<str>) -> Vec<(R, Role)> {
        if let Some(granted) = self.new_roles.iter().rev().find_map(|(_, role)| role.term()) {
            self.terms.insert(service.clone(), granted);
        }
        std::mem::take(&mut self.new_roles)
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<str>> {
        self.services.keys()
    }

    /// One service as it is now, for a follower who has read it at revision `since`.
    pub(crate) fn read(&self, service: &str, since: u64) -> ServiceState {
        let Some((name, service)) = self.services.get_key_value(service) else {
            return ServiceState::empty(service);
        };
        let left = service.left.iter().rev().take_while(|(at, _)| *at > since).map(|(_, code)| code.clone()).collect();
        ServiceState {
            revision: service.revision,
            instances: service.members.values().map(|member| member.instance.clone()).collect(),
            overrides: service.overrides.clone(),
            left,
            ..ServiceState::empty(name.clone())
        }
    }
}

impl<R: Clone> Service<R> {
    fn promote(&mut self, term: u64) -> Option<(R, Role)> {
        let first = self.first_undrained().or_else(|| self.members.keys().next().copied())?;
        self.promote_one(first, term)
    }

    /// Lets another be master if the one who is, is drained, and the other is not.
    fn hand_on(&mut self, term: u64) -> Vec<(R, Role)> {
        let master = self.members.iter().find(|(_, member)| member.instance.role.is_master());
        let drained = master.filter(|(_, member)| self.is_drained(member)).map(|(id, _)| *id);
        let (Some(drained), Some(next)) = (drained, self.first_undrained()) else { return Vec::new() };
        let mut roles = Vec::new();
        if let Some(member) = self.members.get_mut(&drained) {
            set_role(member, Role::Normal);
            roles.push((member.report.clone(), Role::Normal));
        }
        roles.extend(self.promote_one(next, term));
        roles
    }

    fn first_undrained(&self) -> Option<MemberId> {
        self.members.iter().find(|(_, member)| !self.is_drained(member)).map(|(id, _)| *id)
    }

    fn is_drained(&self, member: &Member<R>) -> bool {
        let set = self.overrides.get(&member.instance.code).copied().unwrap_or_default();
        !set.apply(member.instance.clone()).takes_work()
    }

    fn promote_one(&mut self, id: MemberId, term: u64) -> Option<(R, Role)> {
        let member = self.members.get_mut(&id)?;
        let role = Role::Master(Term(term));
        set_role(member, role);
        Some((member.report.clone(), role))
    }
}

fn set_role<R>(member: &mut Member<R>, role: Role) {
    Arc::make_mut(&mut member.instance).role = role;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever happens, a service with members has exactly one master, and terms only rise.
        #[test]
        fn one_master_and_rising_terms(steps in proptest::collection::vec((0..7_u8, 0..8_usize), 1..60)) {
            let mut state = State::default();
            let (mut members, mut codes) = (Vec::new(), Vec::new());
            let mut highest = 0;
            for (step, which) in steps {
                match step {
                    0 | 1 => {
                        let instance = Instance::new("s").weight(u32::from(step));
                        codes.push(instance.code.clone());
                        members.push(state.join(instance, None, ()).unwrap().0);
                    }
                    4..=6 if !codes.is_empty() => {
                        let change = [OverrideChange::Drain, OverrideChange::Undrain, OverrideChange::Weight(Some(1))];
                        state.set_override(&"s".into(), &codes[which % codes.len()], change[usize::from(step) - 4], which % 2 == 0);
                    }
                    2 if !members.is_empty() => state.leave("s", members.swap_remove(which % members.len()), Departure::Left),
                    3 if !members.is_empty() => { state.resign("s", members[which % members.len()]); }
                    _ => {}
                }
                let read = state.read("s", 0);
                let terms: Vec<_> = read.instances.iter().filter_map(|i| i.role.term()).collect();
                prop_assert_eq!(read.instances.len(), members.len());
                prop_assert_eq!(terms.len(), usize::from(!members.is_empty()));
                let set = |instance: &Arc<Instance>| read.overrides.get(&instance.code).copied().unwrap_or_default();
                let takes_work = |i: &&Arc<Instance>| set(i).apply(Arc::clone(i)).takes_work();
                let working: Vec<_> = read.instances.iter().filter(takes_work).collect();
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
            state.set_override(&service, "a", OverrideChange::Undrain, keeps_empty);
            state.restore_override(&service, "a", Override { drained: true, weight: None });
            let set = state.read("s", 0).overrides["a"];
            assert_eq!(set.drained, is_restored);
        }
    }

    #[test]
    fn who_leaves_cleanly_is_named_until_it_is_back() {
        let mut state = State::default();
        let join = |state: &mut State<()>| state.join(Instance::new("s").code("a"), None, ()).unwrap().0;
        let left = |state: &State<()>, since| state.read("s", since).left.len();
        let a = join(&mut state);
        let seen = state.read("s", 0).revision;
        state.leave("s", a, Departure::Left);
        assert_eq!((left(&state, seen), left(&state, state.read("s", seen).revision)), (1, 0));
        let a = join(&mut state);
        assert_eq!(left(&state, seen), 0);
        state.leave("s", a, Departure::Lost);
        assert_eq!(left(&state, seen), 0);
    }
}
