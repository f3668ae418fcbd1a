//! `audit` and `history`: actions of operators, and the masters of a service.

use std::process::ExitCode;

use pointsman::Log;
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::{Outcome, output, session, table};

/// An action of an operator, in the form of the agent's API.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Action {
    pub(crate) at_ms: u64,
    pub(crate) actor: String,
    pub(crate) action: String,
    /// Empty where it is of no service.
    pub(crate) service: String,
    /// Empty where it is of no instance; `*` where it is of several.
    pub(crate) code: String,
    pub(crate) detail: String,
}

/// `pointsman audit [SERVICE]`: the newest first.
pub(crate) async fn run(service: Option<&str>, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let log = registry.read_log(&Log::Audit).await?;
    session::close(registry).await;
    let actions = actions(&log, service);
    let names = actions.iter().map(|action| format!("{}/{}", action.service, action.code));
    output::show(global.output, &actions, names, |_| table::actions(&actions))?;
    if actions.is_empty() {
        output::note("note: nothing is noted; only what is done through an agent is");
    }
    Ok(ExitCode::SUCCESS)
}

/// `pointsman history SERVICE`: the newest first.
pub(crate) async fn history(service: &str, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let masters = registry.masters(service).await?;
    session::close(registry).await;
    let names = masters.iter().map(|mastership| format!("{service}/{}", mastership.code));
    output::show(global.output, &masters, names, |_| table::masters(&masters))?;
    if masters.is_empty() {
        output::note(&format!("note: no agent has seen a master of {}", output::shown(service)));
    }
    Ok(ExitCode::SUCCESS)
}

/// The entries of a log, the newest first. Entries of a later version that cannot be read are left out.
fn actions(log: &[String], service: Option<&str>) -> Vec<Action> {
    let actions = log.iter().rev().filter_map(|entry| serde_json::from_str::<Action>(entry).ok());
    actions.filter(|action| service.is_none_or(|service| service == action.service)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_service_come_first() {
        let entry = |at_ms: u64, service: &str| {
            format!(r#"{{"at_ms":{at_ms},"actor":"x","action":"drain","service":"{service}","code":"a","detail":"d"}}"#)
        };
        let log = [entry(1, "s"), "{}".to_owned(), entry(2, "t"), entry(3, "s")];
        let times = |service| actions(&log, service).iter().map(|action| action.at_ms).collect::<Vec<_>>();
        assert_eq!((times(Some("s")), times(None)), (vec![3, 1], vec![3, 2, 1]));
    }
}
