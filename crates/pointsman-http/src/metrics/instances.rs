//! How it stands with the instances of services at the moment.

use std::sync::Arc;

use pointsman_core::ServiceId;

use super::{Text, escaped, service_labels};

/// The instances of a service.
#[derive(Debug)]
pub(crate) struct Instances {
    pub(crate) service: ServiceId,
    /// Checks that have passed, and that have failed; `None`: it is not checked.
    pub(crate) checks: Option<(u64, u64)>,
    pub(crate) passing: usize,
    pub(crate) failing: usize,
    /// Their first check has not ended.
    pub(crate) unknown: usize,
    pub(crate) ejected: usize,
    /// By code.
    pub(crate) in_flight: Vec<(Arc<str>, usize)>,
}

pub(super) fn write(text: &mut Text, services: &[Instances]) {
    let named = |service: &Instances| service_labels(&service.service);
    text.family("health_checks", "counter", "Checks of instances, by service and result");
    for service in services {
        let Some((passed, failed)) = service.checks else { continue };
        text.line("health_checks_total", &format!("{},result=\"passed\"", named(service)), passed);
        text.line("health_checks_total", &format!("{},result=\"failed\"", named(service)), failed);
    }
    text.family("instances", "gauge", "Instances, by service, and by whether they pass their checks, if there are any");
    for service in services {
        text.line("instances", &format!("{},state=\"passing\"", named(service)), service.passing);
        text.line("instances", &format!("{},state=\"failing\"", named(service)), service.failing);
        text.line("instances", &format!("{},state=\"unknown\"", named(service)), service.unknown);
    }
    text.family("instances_ejected", "gauge", "Instances that get no requests for a while because theirs have failed");
    for service in services {
        text.line("instances_ejected", &named(service), service.ejected);
    }
    text.family("instance_in_flight", "gauge", "Requests under way, by service and instance");
    for service in services {
        for (code, in_flight) in &service.in_flight {
            text.line("instance_in_flight", &format!("{},code=\"{}\"", named(service), escaped(code)), in_flight);
        }
    }
}
