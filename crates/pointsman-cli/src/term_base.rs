//! `term-base`: what is added to the registry's own numbers to make terms, and how it is raised.

use std::process::ExitCode;

use pointsman::Term;
use serde_json::json;

use crate::args::{Global, TermBase};
use crate::{Outcome, output, session};

/// `pointsman term-base` and `pointsman term-base --above N`.
pub(crate) async fn run(args: &TermBase, global: &Global) -> Outcome {
    let registry = session::connect(global).await?;
    let before = session::patiently(&registry, registry.term_base()).await?;
    let base = match args.above {
        Some(above) => session::patiently(&registry, registry.raise_term_base(Term(above))).await?,
        None => before,
    };
    session::close(registry).await;
    let is_raised = base > before;
    let data = json!({ "term_base": base.0, "raised": is_raised });
    output::show(global.output, &data, [base.0.to_string()], |_| sentence(base, is_raised, args.above))?;
    Ok(ExitCode::SUCCESS)
}

fn sentence(base: Term, is_raised: bool, above: Option<u64>) -> String {
    match (base, above) {
        (Term(0), _) => "no term base is set: terms are the registry's own numbers".to_owned(),
        (base, _) if is_raised => format!("terms are above {base} from now on; a master that there is keeps its term"),
        (base, Some(_)) => format!("terms are above {base} already: nothing is changed"),
        (base, None) => format!("terms are above {base}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_whether_anything_has_changed() {
        assert!(sentence(Term(0), false, None).starts_with("no term base is set"));
        assert!(sentence(Term(7), true, Some(7)).contains("from now on"));
        assert!(sentence(Term(7), false, Some(6)).contains("already"));
        assert_eq!(sentence(Term(7), false, None), "terms are above 7");
    }
}
