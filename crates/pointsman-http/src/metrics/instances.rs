//! How it stands with the instances of services at the moment.

use std::sync::Arc;

use pointsman_core::ServiceId;
use pointsman_net::metrics::Kind::{Counter, Gauge};
use pointsman_net::metrics::MetricsText;

use super::service_labels;

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

pub(super) fn write(text: &mut MetricsText<'_>, services: &[Instances]) {
    let mut family = text.family("health_checks", Counter, "Checks of instances, by service and result");
    for service in services {
        let Some((passed, failed)) = service.checks else { continue };
        for (result, count) in [("passed", passed), ("failed", failed)] {
            family.sample(service_labels(&service.service).chain([("result", result)]), count);
        }
    }
    let help = "Instances, by service, and by whether they pass their checks, if there are any";
    let mut family = text.family("instances", Gauge, help);
    for service in services {
        for (state, count) in [("passing", service.passing), ("failing", service.failing), ("unknown", service.unknown)]
        {
            family.sample(service_labels(&service.service).chain([("state", state)]), count);
        }
    }
    let help = "Instances that get no requests for a while because theirs have failed";
    let mut family = text.family("instances_ejected", Gauge, help);
    for service in services {
        family.sample(service_labels(&service.service), service.ejected);
    }
    let mut family = text.family("instance_in_flight", Gauge, "Requests under way, by service and instance");
    for service in services {
        for (code, in_flight) in &service.in_flight {
            family.sample(service_labels(&service.service).chain([("code", &**code)]), in_flight);
        }
    }
}
