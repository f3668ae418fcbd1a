//! How far the tests are.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::run::{Failure, cargo_command};

/// Builds the tests, then runs them; says before each test binary which of them it is, and how long all have taken so far.
pub(crate) fn test(environment: &[(&str, &str)], arguments: &[&str]) -> Result<(), Failure> {
    let own = arguments.iter().position(|argument| *argument == "--").unwrap_or(arguments.len());
    // Examples in the documentation are not built beforehand.
    let is_documentation = arguments[..own].contains(&"--doc");
    let mut count = 0;
    if !is_documentation {
        run(environment, &[&["test", "--no-run"], &arguments[..own]].concat(), |line| {
            count += usize::from(line.trim_start().starts_with("Executable "));
            None
        })?;
    }
    let (started, mut number) = (Instant::now(), 0);
    run(environment, &[&["test"], arguments].concat(), |line| {
        let line = line.trim_start();
        let seconds = started.elapsed().as_secs();
        let time = format!("{} min {:02} s", seconds / 60, seconds % 60);
        if line.starts_with("Running ") && line.ends_with(')') {
            number += 1;
            return Some(format!("test binary {number} of {count}, after {time}"));
        }
        line.starts_with("Doc-tests ").then(|| format!("examples in the documentation, after {time}"))
    })
}

/// Runs cargo. What it writes to stderr is passed on; what `note` makes of a line is shown before it.
fn run(
    environment: &[(&str, &str)],
    arguments: &[&str],
    mut note: impl FnMut(&str) -> Option<String>,
) -> Result<(), Failure> {
    let mut command: Command = cargo_command(environment, arguments)?;
    let words = format!("cargo {}", arguments.join(" "));
    println!("xtask> {words}");
    let failed = |error: std::io::Error| Failure::new(format!("{words}: {error}"));
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let mut lines = child.stderr.take().map(BufReader::new);
    let mut line = Vec::new();
    while let Some(lines) = &mut lines
        && lines.read_until(b'\n', &mut line).map_err(failed)? > 0
    {
        if let Some(note) = note(String::from_utf8_lossy(&line).trim_end()) {
            eprintln!("xtask> {note}");
        }
        // Nobody reads it: the tests go on.
        let _ = std::io::stderr().write_all(&line);
        line.clear();
    }
    match child.wait().map_err(failed)? {
        status if status.success() => Ok(()),
        status => Err(Failure::new(format!("{words}: {status}"))),
    }
}
