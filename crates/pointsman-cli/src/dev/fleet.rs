//! The instances of the sample services: started, killed, drained.

use std::sync::Arc;

use pointsman::{Registration, Registry, Service};

use crate::dev::messages::{self, Messages};
use crate::dev::requests;
use crate::dev::sample::{Pace, Server};
use crate::failure::Failure;

/// The sample services. The first is reached by addresses, the second by codes alone, as behind a message broker.
pub(super) const SERVICES: [&str; 2] = [requests::SERVICE, messages::SERVICE];
const WEIGHTS: [u32; 3] = [1, 2, 3];

/// All instances of the sample services.
#[derive(Debug)]
pub(super) struct Fleet {
    registry: Registry,
    messages: Arc<Messages>,
    services: Vec<Service>,
    members: Vec<Member>,
    started: [u32; SERVICES.len()],
}

/// One instance.
#[derive(Debug)]
enum Member {
    /// Reached by its address. Dropped, it is gone without a farewell, as a process that was killed.
    Server(Registration, Server),
    /// Reached by its code. Dropped, it leaves as it should: it answers what it has first.
    Behind(pointsman::mqtt::Service),
}

impl Member {
    fn is(&self, service: usize, code: &str) -> bool {
        match (self, service) {
            (Member::Server(registration, _), 0) => &*registration.instance().code == code,
            (Member::Behind(instance), 1) => &**instance.code() == code,
            _ => false,
        }
    }
}

impl Fleet {
    /// Starts three instances of each service.
    pub(super) async fn start(registry: &Registry, messages: &Arc<Messages>) -> Result<Self, Failure> {
        let mut services = Vec::new();
        for service in SERVICES {
            services.push(registry.discover(service).await?);
        }
        let (registry, messages) = (registry.clone(), messages.clone());
        let mut fleet = Self { registry, messages, services, members: Vec::new(), started: [0; 2] };
        for _ in WEIGHTS {
            for service in 0..SERVICES.len() {
                fleet.add(service).await?;
            }
        }
        Ok(fleet)
    }

    /// The services, in the order of [`SERVICES`].
    pub(super) fn services(&self) -> &[Service] {
        &self.services
    }

    /// Starts one more instance of a service.
    pub(super) async fn add(&mut self, service: usize) -> Result<(), Failure> {
        let number = self.started[service];
        self.started[service] += 1;
        let code = format!("{}-{}", SERVICES[service], number + 1);
        let weight = WEIGHTS[number as usize % WEIGHTS.len()];
        if service == 1 {
            self.members.push(Member::Behind(self.messages.serve(&self.registry, &code, weight, true).await?));
            return Ok(());
        }
        let server = Server::start(&code, Pace::Busy).await;
        let server = server.map_err(|error| Failure::new(format!("start a sample server: {error}")))?;
        let instance = pointsman::Instance::new(SERVICES[0]).code(&*code).weight(weight).address(server.address());
        self.members.push(Member::Server(self.registry.register(instance).await?, server));
        Ok(())
    }

    /// Kills the master of a service, or, if it is behind the broker, lets it stop; its code, if there was one.
    pub(super) fn kill_master(&mut self, service: usize) -> Option<Arc<str>> {
        let code = self.services[service].master().ok()?.code.clone();
        let index = self.members.iter().position(|member| member.is(service, &code))?;
        drop(self.members.swap_remove(index));
        Some(code)
    }

    /// Drains an instance, or undrains it if it is drained.
    pub(super) async fn toggle_drain(&self, service: usize, code: &str) -> Result<(), Failure> {
        let Some(instance) = self.services[service].snapshot().find(code).cloned() else { return Ok(()) };
        if instance.takes_work() {
            self.registry.drain(SERVICES[service], code).await?;
        } else {
            self.registry.undrain(SERVICES[service], code).await?;
        }
        Ok(())
    }

    /// How many requests each instance of a service is at.
    pub(super) fn in_flight(&self, service: usize) -> Vec<(Arc<str>, usize)> {
        if service == 1 {
            return self.messages.in_flight();
        }
        let servers = self.members.iter().filter_map(|member| match member {
            Member::Server(registration, server) => Some((registration, server)),
            Member::Behind(_) => None,
        });
        let count = |(registration, server): (&Registration, &Server)| {
            (registration.instance().code.clone(), *server.flights().borrow())
        };
        servers.map(count).collect()
    }

    /// Deregisters all.
    pub(super) async fn close(self) {
        for member in self.members {
            let closed = match member {
                Member::Server(registration, _) => registration.close().await.map_err(|error| error.to_string()),
                Member::Behind(instance) => instance.close().await.map_err(|error| error.to_string()),
            };
            if let Err(error) = closed {
                tracing::warn!(error, "deregister");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_master_is_killed_and_another_follows() {
        let registry = Registry::connect("memory://fleet").await.unwrap();
        let messages = Messages::start(&registry, ([127, 0, 0, 1], 0).into()).await.unwrap();
        let mut fleet = Fleet::start(&registry, &Arc::new(messages)).await.unwrap();
        let ress = fleet.services()[0].clone();
        ress.wait_for(|snapshot| snapshot.instances().len() == 3 && snapshot.master().is_some()).await.unwrap();
        assert_eq!(&*ress.master().unwrap().code, "ress-1");
        assert_eq!(fleet.kill_master(0).as_deref(), Some("ress-1"));
        ress.wait_for(|snapshot| snapshot.master().is_some_and(|master| &*master.code == "ress-2")).await.unwrap();
        fleet.add(0).await.unwrap();
        fleet.toggle_drain(0, "ress-4").await.unwrap();
        ress.wait_for(|snapshot| snapshot.find("ress-4").is_some_and(|i| !i.takes_work())).await.unwrap();
        fleet.toggle_drain(0, "ress-4").await.unwrap();
        ress.wait_for(|snapshot| snapshot.find("ress-4").is_some_and(|i| i.takes_work())).await.unwrap();
        fleet.close().await;
        ress.wait_for(|snapshot| snapshot.instances().is_empty()).await.unwrap();
    }
}
