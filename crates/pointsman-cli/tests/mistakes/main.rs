//! Typical mistakes, and what the command says of each: what is wrong, where, and what would be right.
//!
//! The cases are transcripts in `*.txt` beside this file. `UPDATE_GOLDEN=1 cargo test -p pointsman-cli --test mistakes` writes anew what the
//! commands say; read the difference before it is committed. A transcript:
//!
//! ```text
//! ## what the mistake is
//! > p.toml                    a file of the folder that the command runs in, until the next line that begins with >, $ or env
//! [http]
//! env NAME=VALUE              a variable
//! $ pointsman check p.toml
//! ? 1                         the exit code, and then what is written to stderr, and after "--" to stdout
//! p.toml:1:1: error: …
//! ```
//!
//! `{closed}` and the other names in braces are places of the world around (`world.rs`), in both directions.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;
mod transcript;
mod world;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;

use tokio::time::timeout;

use crate::support::{DEADLINE, command};
use crate::transcript::Case;
use crate::world::World;

async fn tell_as_written(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes").join(name);
    let written = std::fs::read_to_string(&path).unwrap();
    let world = World::start().await;
    let mut told = String::new();
    let (mut total, mut others) = (0, Vec::new());
    for mut case in transcript::parse(&written) {
        let expected = case.told.clone();
        case.told = carry_out(&case, &world).await;
        if case.told != expected {
            others.push(format!("## {}\nwritten:\n{expected}\ntold:\n{}", case.name, case.told));
        }
        total += 1;
        // Writing to a string cannot fail.
        let _ = write!(told, "{case}");
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, told).unwrap();
    } else {
        assert!(others.is_empty(), "{} of {total} are told otherwise:\n{}", others.len(), others.join("\n"));
    }
}

/// Runs a case in a folder of its own: its exit code, and what it says.
async fn carry_out(case: &Case, world: &World) -> String {
    let folder = tempfile::tempdir().unwrap();
    world.fill(folder.path());
    for (name, text) in &case.files {
        std::fs::write(folder.path().join(name), world.put_in(text)).unwrap();
    }
    let args: Vec<_> = transcript::words(&case.command).iter().map(|word| world.put_in(word)).collect();
    assert_eq!(args[0], "pointsman", "{}", case.name);
    let mut command = command(&args[1..]);
    command.current_dir(folder.path()).env("HOME", folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("XDG_RUNTIME_DIR");
    for (name, value) in &case.variables {
        command.env(name, world.put_in(value));
    }
    let output = timeout(DEADLINE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{} does not end", case.name)).unwrap();
    let text = |bytes: Vec<u8>| world.take_out(&String::from_utf8(bytes).unwrap(), folder.path());
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    let stdout = if stdout.is_empty() { stdout } else { format!("--\n{stdout}") };
    format!("? {}\n{stderr}{stdout}", output.status.code().unwrap_or(-1))
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_configuration_file() {
    tell_as_written("configuration.txt").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_command_line() {
    tell_as_written("command_line.txt").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_registry() {
    tell_as_written("registry.txt").await;
}
