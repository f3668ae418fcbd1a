//! Doing what only the master may do, for as long as this instance is master.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use pointsman_core::{Role, Term};

use super::{Registration, Roles, TAKEN_OVER, Trouble};
use crate::{Error, Result};

impl Registration {
    /// Runs the future that `work` returns whenever this instance is master: one run for each term, until the registration ends.
    ///
    /// - **A run ends with its term.** When the term ends, whatever the reason, the run is dropped; and it is never polled again once the
    ///   [local deadline](Registration::held_until) of the role has passed, even if the process was paused meanwhile and no timer has fired yet.
    ///   So a run stops at its next `await`. Code between two awaits goes on until then, and tasks that the run has spawned go on without it,
    ///   unless it owns them (in a `JoinSet`). What is written under a mastership carries the term in any case: see
    ///   [`TermGuard`](pointsman_core::TermGuard).
    /// - **Then it goes on** with the next term, after the run before it was dropped. No term is missed by a run that takes long, only
    ///   those that have ended meanwhile.
    /// - **A term may come back.** A connection that was lost, or silent for too long, may return while the registry still has this instance as
    ///   master. That is the same term, and it gets another run, because the one before was dropped.
    /// - **A run that ends by itself** is the last one of its term: the instance stays master, and does nothing until the next term. To
    ///   let another instance lead, call [`resign`](Registration::resign).
    ///
    /// Cancelled, it drops the run, and the instance stays registered, and master. A panic of a run passes through.
    ///
    /// # Errors
    ///
    /// `Ok` when the registration was closed, or its registry was. The error of [`registered`](Registration::registered) when the instance
    /// could never be registered; [`Error::TakenOver`] when the same holder has registered it elsewhere.
    ///
    /// # Examples
    ///
    /// ```
    /// use pointsman_core::{Instance, Term};
    /// use pointsman_registry::Registry;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// async fn work(term: Term) {
    ///     println!("leading: everything written carries term {term}");
    ///     std::future::pending().await
    /// }
    ///
    /// # let stopped = tokio::time::sleep(std::time::Duration::from_millis(10));
    /// let registry = Registry::connect("memory://lead").await?;
    /// let registration = registry.register(Instance::new("jobs")).await?;
    /// tokio::select! {
    ///     ended = registration.lead(work) => ended?,
    ///     () = stopped => {} // a signal to this process
    /// }
    /// registration.close().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn lead<Run>(&self, mut work: impl FnMut(Term) -> Run) -> Result<()>
    where
        Run: Future<Output = ()>,
    {
        let mut done = None;
        let is_wanted = |role: Role, done| role.is_master() && role.term() != done;
        while let Some(Role::Master(term)) = self.roles.wait_for(|role| is_wanted(role, done)).await {
            if self.roles.during(term, work(term)).await.is_some() {
                done = Some(term);
            }
        }
        self.outcome()
    }

    /// Why it has ended.
    fn outcome(&self) -> Result<()> {
        if let Some(Err(error)) = self.entered.get()
            && !matches!(error, Error::Closed { .. })
        {
            return Err(error.clone());
        }
        if self.trouble() == Some(Trouble::Ended(TAKEN_OVER)) {
            let instance = self.instance();
            return Err(Error::TakenOver { service: instance.service.clone(), code: instance.code.clone() });
        }
        Ok(())
    }
}

impl Roles {
    /// Waits until the role is one that is wanted, and returns it: at once, if it is. `None` when the registration has ended; the role then is
    /// [`Role::Detached`], so a wait for that, or for not being master, is answered with it.
    ///
    /// Other than [`changed`](Roles::changed) it tells what is, not what is new, and takes no change from anybody: any number of waits
    /// may go on at the same time. A role that comes and goes in between may be missed. Cancellation loses nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let registry = Registry::connect("memory://wait-for").await?;
    /// let registration = registry.register(Instance::new("jobs")).await?;
    /// let role = registration.roles().wait_for(Role::is_master).await;
    /// assert!(role.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait_for(&self, mut wanted: impl FnMut(Role) -> bool) -> Option<Role> {
        let mut changes = self.state.clone();
        loop {
            let state = changes.borrow_and_update().clone();
            let role = state.role_now();
            if wanted(role) {
                return Some(role);
            }
            if matches!(state.trouble, Some(Trouble::Ended(_))) {
                return None;
            }
            state.outdated(role, &mut changes).await?;
        }
    }

    /// Returns when this instance is not, or not certain to be, master by this term: at once, if it is not. That may be because another
    /// is master, because the role was given up, because the connection is lost, because the local deadline of the role has passed, or because
    /// the registration has ended.
    ///
    /// After a lost connection the same term may [come back](Registration::lead). Cancellation loses nothing.
    ///
    /// # Examples
    ///
    /// What [`lead`](Registration::lead) does, by hand: `role_changed` is not asked while a term lasts, so no change is lost.
    ///
    /// ```
    /// # use pointsman_core::{Instance, Role, Term};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # async fn work(_: Term) {}
    /// # let registry = Registry::connect("memory://ended").await?;
    /// # let registration = registry.register(Instance::new("jobs")).await?;
    /// let roles = registration.roles();
    /// let leading = tokio::spawn(async move {
    ///     while let Some(Role::Master(term)) = roles.wait_for(Role::is_master).await {
    ///         tokio::select! {
    ///             biased; // a term that has ended is noticed before the work goes on
    ///             () = roles.ended(term) => {}
    ///             () = work(term) => roles.ended(term).await,
    ///         }
    ///     }
    /// });
    /// registration.close().await?;
    /// leading.await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ended(&self, term: Term) {
        // At the end of the registration the role is another, too.
        self.wait_for(|role| role != Role::Master(term)).await;
    }

    /// Runs a future while the term lasts. `None`: the term has ended before the future has.
    async fn during<T>(&self, term: Term, run: impl Future<Output = T>) -> Option<T> {
        let mut ended = pin!(self.ended(term));
        let mut run = pin!(run);
        poll_fn(|context| {
            // The clock itself is asked each time: after a pause of the process the timers may not have fired yet.
            if self.role() != Role::Master(term) || ended.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            run.as_mut().poll(context).map(Some)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use pointsman_core::Instance;
    use tokio::time::Instant;

    use super::super::{RoleWriter, Task, Wanted, pair};
    use super::*;
    use crate::lease::Lease;

    fn registration() -> (Registration, Box<Task>) {
        let instance = Instance::new("s").code("a");
        pair(Wanted { instance, holder: None, observer: false, check: None, patience: None })
    }

    fn lease(length: Duration) -> Lease {
        let lease = Lease::new();
        lease.extend(Instant::now() + length);
        lease
    }

    /// Lets the leader run until it waits.
    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    /// The runs that have begun, and ended by being dropped.
    #[derive(Debug, Clone, Default)]
    struct Runs(Arc<Mutex<Vec<(&'static str, u64)>>>);

    struct Run(Runs, u64);

    impl Runs {
        fn begin(&self, term: Term) -> Run {
            self.0.lock().unwrap().push(("begins", term.0));
            Run(self.clone(), term.0)
        }

        fn take(&self) -> Vec<(&'static str, u64)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl Drop for Run {
        fn drop(&mut self) {
            self.0.0.lock().unwrap().push(("ends", self.1));
        }
    }

    /// A leader whose runs never end by themselves.
    fn leader() -> (RoleWriter, Box<Task>, Runs, tokio::task::JoinHandle<Result<()>>) {
        let ((registration, task), runs) = (registration(), Runs::default());
        let leading = {
            let runs = runs.clone();
            tokio::spawn(async move {
                registration
                    .lead(|term| {
                        let run = runs.begin(term);
                        async move {
                            let _run = run;
                            std::future::pending::<()>().await;
                        }
                    })
                    .await
            })
        };
        (task.report.roles().clone(), task, runs, leading)
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_ends_with_its_term_and_the_next_term_gets_the_next_run() {
        let (roles, task, runs, leading) = leader();
        settle().await;
        assert_eq!(runs.take(), []);
        roles.registered(Role::Normal, None);
        roles.registered(Role::Master(Term(1)), None);
        settle().await;
        assert_eq!(runs.take(), [("begins", 1)]);
        // Another term without a gap that anybody could have seen.
        roles.step_down("resigning");
        roles.registered(Role::Normal, None);
        roles.registered(Role::Master(Term(3)), None);
        settle().await;
        assert_eq!(runs.take(), [("ends", 1), ("begins", 3)]);
        roles.registered(Role::Normal, None);
        settle().await;
        assert_eq!(runs.take(), [("ends", 3)]);
        roles.registered(Role::Master(Term(5)), None);
        settle().await;
        drop((roles, task));
        assert!(leading.await.unwrap().is_ok());
        assert_eq!(runs.take(), [("begins", 5), ("ends", 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_ends_by_the_local_deadline_and_a_term_that_comes_back_gets_another_run() {
        let (roles, _task, runs, _leading) = leader();
        let lease = lease(Duration::from_secs(2));
        roles.registered(Role::Master(Term(1)), Some(lease.clone()));
        tokio::time::sleep(Duration::from_millis(1999)).await;
        assert_eq!(runs.take(), [("begins", 1)]);
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(runs.take(), [("ends", 1)]);
        lease.extend(Instant::now() + Duration::from_secs(1));
        settle().await;
        assert_eq!(runs.take(), [("begins", 1)]);
        lease.end();
        settle().await;
        assert_eq!(runs.take(), [("ends", 1)]);
    }

    #[tokio::test]
    async fn no_run_is_polled_after_the_local_deadline_although_no_timer_has_fired() {
        let (registration, task) = registration();
        task.report.roles().registered(Role::Master(Term(1)), Some(lease(Duration::from_millis(50))));
        let mut goes_on = false;
        let run = async {
            // As if the process were stopped here.
            std::thread::sleep(Duration::from_millis(60));
            tokio::task::yield_now().await;
            goes_on = true;
        };
        assert_eq!(registration.roles().during(Term(1), run).await, None);
        assert!(!goes_on);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_ends_by_itself_is_the_last_of_its_term() {
        let ((registration, task), runs) = (registration(), Runs::default());
        let (roles, lease) = (task.report.roles().clone(), lease(Duration::from_secs(1)));
        let begun = runs.clone();
        tokio::spawn(async move { registration.lead(async |term| drop(begun.begin(term))).await });
        roles.registered(Role::Master(Term(1)), Some(lease.clone()));
        settle().await;
        assert_eq!(runs.take(), [("begins", 1), ("ends", 1)]);
        // Also after it was in doubt for a while.
        tokio::time::sleep(Duration::from_secs(2)).await;
        lease.extend(Instant::now() + Duration::from_secs(1));
        settle().await;
        assert_eq!(runs.take(), []);
        roles.registered(Role::Master(Term(2)), None);
        settle().await;
        assert_eq!(runs.take(), [("begins", 2), ("ends", 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leads_is_told_why_the_registration_has_ended() {
        let never = async |_| std::future::pending().await;
        let (registered, task) = registration();
        task.report.entered(Err(Error::unavailable("register s/a", "away")));
        drop(task);
        assert!(matches!(registered.lead(never).await, Err(Error::Unavailable { .. })));
        let (registered, mut task) = registration();
        task.report.replaced();
        drop(task);
        assert!(matches!(registered.lead(never).await, Err(Error::TakenOver { .. })));
        let (registered, task) = registration();
        task.report.entered(Err(Error::Closed { what: "registration s/a".to_owned() }));
        drop(task);
        assert!(registered.lead(never).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_role_takes_no_change_from_others_and_is_told_of_the_end() {
        let (mut registration, task) = registration();
        let roles = registration.roles();
        task.report.roles().registered(Role::Master(Term(1)), None);
        assert_eq!(roles.wait_for(Role::is_master).await, Some(Role::Master(Term(1))));
        assert_eq!(registration.role_changed().await, Some(Role::Master(Term(1))));
        roles.ended(Term(2)).await;
        assert!(tokio::time::timeout(Duration::from_secs(1), roles.ended(Term(1))).await.is_err());
        drop(task);
        roles.ended(Term(1)).await;
        assert_eq!(roles.wait_for(Role::is_master).await, None);
        assert_eq!(roles.wait_for(|role| !role.is_master()).await, Some(Role::Detached));
    }
}
