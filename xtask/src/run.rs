//! Commands, shown before they run.

use std::path::Path;
use std::process::{Command, Stdio};

/// Why a task has failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    /// What the process is to exit with.
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: 1 }
    }
}

/// Runs cargo at the root of the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Result<(), Failure> {
    cargo_with(&[], arguments)
}

/// Cargo at the root of the workspace, with more environment.
pub(crate) fn cargo_command(environment: &[(&str, &str)], arguments: &[&str]) -> Result<Command, Failure> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or_else(|| Failure::new("no workspace above xtask"))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(arguments).envs(environment.iter().copied());
    Ok(command)
}

/// Runs cargo with more environment.
pub(crate) fn cargo_with(environment: &[(&str, &str)], arguments: &[&str]) -> Result<(), Failure> {
    let mut command = cargo_command(environment, arguments)?;
    let set: String = environment.iter().map(|(name, value)| format!("{name}='{value}' ")).collect();
    run(&format!("{set}cargo {}", arguments.join(" ")), &mut command)
}

/// Shows the command in these words, runs it without a standard input, and fails when it does.
pub(crate) fn run(words: &str, command: &mut Command) -> Result<(), Failure> {
    let words = words.trim_end();
    println!("xtask> {words}");
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(format!("{words}: {status}"))),
        Err(error) => Err(Failure::new(format!("{words}: {error}"))),
    }
}
