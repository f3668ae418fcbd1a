//! `drain`, `undrain`, `weight`: what an operator sets.

use std::process::ExitCode;

use pointsman::Registry;
use serde_json::json;

use crate::args::{Global, Output, Target, Weight};
use crate::failure::Failure;
use crate::{Outcome, output, session};

/// `pointsman drain SERVICE CODE` and `pointsman undrain SERVICE CODE`.
pub(crate) async fn drain(target: &Target, drained: bool, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    check_target(&registry, target).await?;
    let Target { service, code, .. } = target;
    if drained {
        registry.drain(service, code).await?;
    } else {
        registry.undrain(service, code).await?;
    }
    session::close(registry).await;
    match global.output {
        Output::Json => output::json(&json!({"service": service, "code": code, "drained": drained}))?,
        Output::Table => {
            let word = if drained { "drained" } else { "undrained" };
            output::line(&format!("{service}/{code} {word}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `pointsman weight SERVICE CODE N` and `pointsman weight SERVICE CODE --reset`.
pub(crate) async fn weight(args: &Weight, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    check_target(&registry, &args.target).await?;
    let Target { service, code, .. } = &args.target;
    registry.set_weight(service, code, args.weight).await?;
    session::close(registry).await;
    match (global.output, args.weight) {
        (Output::Json, weight) => output::json(&json!({"service": service, "code": code, "weight": weight}))?,
        (Output::Table, Some(weight)) => output::line(&format!("{service}/{code} has weight {weight}"))?,
        (Output::Table, None) => output::line(&format!("{service}/{code} has its registered weight"))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A mistyped code would be drained in silence: whoever means one that is away says `--force`.
async fn check_target(registry: &Registry, target: &Target) -> Result<(), Failure> {
    if target.force {
        return Ok(());
    }
    let snapshot = session::discover(registry, &target.service).await?.snapshot();
    if snapshot.find(&target.code).is_some() {
        return Ok(());
    }
    let codes: Vec<_> = snapshot.instances().iter().map(|instance| &*instance.code).collect();
    let there_are = match codes.as_slice() {
        [] => "it has no instances now".to_owned(),
        codes => format!("its codes are {}", codes.join(", ")),
    };
    let Target { service, code, .. } = target;
    Err(Failure::new(format!(
        "service {service} has no instance with code {code}: {there_are} (--force sets it anyway)"
    )))
}
