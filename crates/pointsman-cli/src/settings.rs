//! `pointsman config`: what can be said in a configuration file.

use std::process::ExitCode;

use crate::args::{ConfigCommand, Global, Output};
use crate::config::reference::{Entry, NAME, entries, sample};
use crate::failure::Failure;
use crate::{Outcome, output};

pub(crate) fn run(command: &ConfigCommand, global: &Global) -> Outcome {
    match command {
        ConfigCommand::Sample => output::line(sample().trim_end())?,
        ConfigCommand::Explain { key } => explain(key.as_deref(), global)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows a setting and those in it, or all of them.
fn explain(key: Option<&str>, global: &Global) -> Result<(), Failure> {
    // As problems name them, with the indexes of lists.
    let wanted = key.map(|key| key.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>());
    let is_wanted = |entry: &Entry| {
        let parts: Vec<_> = entry.key.split('.').collect();
        let fits = |(part, wanted): (&&str, &&str)| part == wanted || *part == NAME;
        wanted.as_ref().is_none_or(|wanted| parts.len() >= wanted.len() && parts.iter().zip(wanted).all(fits))
    };
    let found: Vec<_> = entries().into_iter().filter(is_wanted).collect();
    if found.is_empty() {
        let key = key.unwrap_or_default();
        return Err(Failure::usage(format!("there is no setting {key:?}; `pointsman config explain` shows all")));
    }
    match global.output {
        Output::Json | Output::Yaml | Output::Name => {
            output::show(global.output, &found, found.iter().map(|entry| entry.key.clone()), |_| String::new())?;
        }
        Output::Table | Output::Wide => {
            let is_list = found.len() > 1;
            let texts: Vec<_> =
                found.iter().map(|entry| if is_list { summary(entry) } else { details(entry) }).collect();
            output::line(&texts.join("\n"))?;
        }
    }
    Ok(())
}

/// A setting among others.
fn summary(Entry { key, help, .. }: &Entry) -> String {
    let first = help.split_inclusive(". ").next().unwrap_or_default().trim_end();
    format!("{key}\n    {first}")
}

fn details(entry: &Entry) -> String {
    let Entry { key, value, default, required, help, restart, secret, .. } = entry;
    let default = if *required { "none: it is required" } else { default.unwrap_or("none") };
    let change = if *restart { "takes a restart" } else { "takes effect at once" };
    let mut text = format!("{key}\n    {help}\n\n    value    {value}\n    default  {default}\n    change   {change}");
    if *secret {
        text.push_str("\n    secret   the value may hold one: it is not shown in logs");
    }
    text
}
