//! A zombie master's write is refused.
//!
//! Two instances of a service write into one ledger. The first is master, and is paused (here: it simply does not look at
//! its role) while the mastership passes to the second. When it wakes up and writes, it still believes to be master; the
//! ledger's guard has seen a higher term and refuses.
//!
//! ```sh
//! cargo run -p pointsman --example term_guard -- zookeeper://127.0.0.1:2181/micro-service
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Mutex;

use pointsman::{Instance, Registry, StaleTerm, Term, TermGuard};

/// What is written under a mastership: it takes the term with each write, and asks the guard while it holds the lock, so
/// that no write can slip in between the question and the deed.
#[derive(Default)]
struct Ledger {
    guard: TermGuard,
    lines: Mutex<Vec<String>>,
}

impl Ledger {
    fn write(&self, term: Term, line: &str) -> Result<(), StaleTerm> {
        let mut lines = self.lines.lock().expect("no writer panics");
        self.guard.check(term)?;
        lines.push(format!("term {term}: {line}"));
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://example".to_owned());
    let registry = Registry::connect(&url).await?;
    let ledger = Ledger::default();

    let first = registry.register(Instance::new("accounts")).await?;
    let mut second = registry.register(Instance::new("accounts")).await?;
    let old_term = first.role().term().ok_or("the first of a service is its master; is another one running?")?;
    ledger.write(old_term, "written by the first")?;

    // Its process is paused; the mastership passes on.
    first.resign().await?;
    let new_term = loop {
        match second.role_changed().await.ok_or("the registration lives")?.term() {
            Some(term) => break term,
            None => continue,
        }
    };
    ledger.write(new_term, "written by the second")?;

    // It wakes up and goes on where it was.
    match ledger.write(old_term, "written by a zombie") {
        Err(refused) => println!("refused: {refused}"),
        Ok(()) => return Err("the zombie's write was accepted".into()),
    }
    for line in ledger.lines.lock().expect("no writer panics").iter() {
        println!("{line}");
    }
    first.close().await?;
    second.close().await?;
    registry.close().await;
    Ok(())
}
