//! Leaving without turning anybody away.

use std::time::Duration;

use super::Registration;
use crate::Result;

impl Registration {
    /// Leaves so that no call is lost: drains this instance, leaves `grace` to callers to see that and to the work in hand to end, and
    /// closes. For the end of a process, after the signal and before the listener is closed.
    ///
    /// 1. The weight becomes 0, as by [`update`](Registration::update): no new work comes as soon as callers have seen it. A drained
    ///    instance is the last to be master: it hands the mastership on at once where another can take it, and keeps it otherwise. Where an
    ///    operator has set another weight, that counts, and work comes until the end.
    /// 2. All of `grace` passes, counted from the call, whether or not the registry could be told. What is within it is up to the
    ///    caller: it serves on meanwhile. An instance that has never been registered has no callers, and does not wait.
    /// 3. The registration is [closed](Registration::close): a clean leave, which nobody takes for a loss.
    ///
    /// If the registration ends by itself meanwhile, so does the wait; what has ended before is left at once. Cancelled, the instance stays
    /// registered and drained: another call drains or closes it, and an update of the weight takes it back into service.
    ///
    /// (`pointsman register` has no work of its own: it deregisters at once, and stops its command then.)
    ///
    /// # Errors
    ///
    /// As [`close`](Registration::close). That it could not be told that the instance is drained is logged; it leaves all the same.
    ///
    /// # Examples
    ///
    /// Not longer than there is work, but long enough for callers to see it:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # async fn work_in_hand() {}
    /// let registry = Registry::connect("memory://drain").await?;
    /// let registration = registry.register(Instance::new("ress").address("10.0.0.1:80")).await?;
    /// let quiet = async {
    ///     tokio::time::sleep(Duration::from_secs(1)).await;
    ///     work_in_hand().await;
    /// };
    /// tokio::select! {
    ///     left = registration.drain(Duration::from_secs(30)) => left?,
    ///     () = quiet => registration.close().await?,
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn drain(&self, grace: Duration) -> Result<()> {
        let was_registered = matches!(self.entered.get(), Some(Ok(())));
        if was_registered {
            let drained = async {
                if let Err(error) = self.update(|instance| instance.weight = 0).await {
                    tracing::warn!(%error, "the registry could not be told that the instance is drained");
                }
                // No role is wanted: until the end of the registration.
                self.roles.wait_for(|_| false).await;
            };
            // That the grace has passed is what is waited for.
            let _ = tokio::time::timeout(grace, drained).await;
        }
        self.close().await
    }
}
