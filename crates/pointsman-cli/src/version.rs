//! `version`: which build this is.

use std::process::ExitCode;

use serde::Serialize;

use crate::args::Global;
use crate::{Outcome, output};

/// Description of the build; `unknown` where it was not made from a repository.
#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
    commit: &'static str,
    /// When it was committed (RFC 3339).
    commit_date: &'static str,
    target: &'static str,
}

const THIS: Version = Version {
    version: env!("CARGO_PKG_VERSION"),
    commit: known(option_env!("POINTSMAN_COMMIT")),
    commit_date: known(option_env!("POINTSMAN_COMMIT_DATE")),
    target: env!("POINTSMAN_TARGET"),
};

const fn known(value: Option<&'static str>) -> &'static str {
    match value {
        Some(value) => value,
        None => "unknown",
    }
}

/// `pointsman version`.
pub(crate) fn run(global: &Global) -> Outcome {
    let Version { version, commit, commit_date, target } = THIS;
    output::show(global.output, &THIS, [version.to_owned()], |_| {
        format!("pointsman {version}\ncommit     {commit}\ncommitted  {commit_date}\ntarget     {target}")
    })?;
    Ok(ExitCode::SUCCESS)
}
