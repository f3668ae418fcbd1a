//! `pick`: what a balancer would choose.

use std::collections::BTreeMap;
use std::process::ExitCode;

use pointsman::{Balancer, Claim, Explanation};

use crate::args::{Global, Output, Pick};
use crate::failure::Failure;
use crate::json::{ExplainedJson, ExplanationJson, InstanceJson};
use crate::list::name;
use crate::output::shown;
use crate::{Outcome, output, session, table};

/// `pointsman pick SERVICE --algorithm A`.
pub(crate) async fn run(args: &Pick, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let service = session::discover(&registry, &args.service).await?;
    let balancer = Balancer::builder(service.view()).algorithm(args.algorithm).candidates(args.role).build();
    let explanation = args.explain.then(|| balancer.explain(&args.key));
    let (claims, snapshot) = (picks(&balancer, args), service.snapshot());
    drop(service);
    session::close(registry).await;
    if claims.is_err() {
        session::check_readable(&snapshot)?;
    }
    match (claims, explanation) {
        (Ok(claims), explanation) => tell(&claims, explanation.as_ref(), global.output)?,
        (Err(failure), Some(explanation)) => {
            // It says why there is nothing to pick.
            match global.output {
                Output::Json | Output::Yaml => tell(&[], Some(&explanation), global.output)?,
                Output::Table | Output::Wide | Output::Name => output::note(&explanation.to_string()),
            }
            return Err(failure);
        }
        (Err(failure), None) => return Err(failure),
    }
    Ok(ExitCode::SUCCESS)
}

/// All are held until the last is made, as if the calls were under way at once: least connections sees them.
fn picks(balancer: &Balancer, args: &Pick) -> Result<Vec<Claim>, Failure> {
    (0..args.count).map(|_| balancer.pick(&args.key).map_err(Failure::from)).collect()
}

fn tell(claims: &[Claim], explanation: Option<&Explanation>, form: Output) -> std::io::Result<()> {
    let picks: Vec<_> = claims.iter().map(|claim| InstanceJson::new(claim.instance())).collect();
    let names = claims.iter().map(|claim| name(claim.instance()));
    let table = |_| {
        let row = |(index, claim): (usize, &Claim)| {
            let address = claim.address().map_or_else(|| "-".to_owned(), shown);
            vec![(index + 1).to_string(), shown(claim.code()), address]
        };
        let table = table::write(&["PICK", "CODE", "ADDRESS"], claims.iter().enumerate().map(row));
        explanation.map_or(table.clone(), |explanation| format!("{table}\n\n{explanation}"))
    };
    match explanation {
        Some(explanation) => {
            let explanation = ExplanationJson::new(explanation);
            output::show(form, &ExplainedJson { picks, explanation }, names, table)?;
        }
        None => output::show(form, &picks, names, table)?,
    }
    if matches!(form, Output::Table | Output::Wide) && claims.len() > 1 {
        output::note(&distribution(claims));
    }
    Ok(())
}

fn distribution(claims: &[Claim]) -> String {
    let mut counts = BTreeMap::new();
    for claim in claims {
        *counts.entry(&**claim.code()).or_insert(0) += 1;
    }
    let parts: Vec<_> = counts.into_iter().map(|(code, count): (_, u32)| format!("{} {count}x", shown(code))).collect();
    format!("note: {}", parts.join(", "))
}
