//! Programs that are started, do their work, and end.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// How long such a program may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// What a program has said.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// Its status; `None` when a signal has ended it.
    pub code: Option<i32>,
    /// Its standard output; what is no text is replaced.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// Runs a program of the path, without standard input, to its end, within two minutes; when it takes longer, it is killed.
///
/// # Panics
/// When it cannot be started, or takes longer.
pub async fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>) -> Output {
    let program = program.as_ref().to_string_lossy().into_owned();
    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(DEADLINE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{program} takes longer than {DEADLINE:?}"));
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs what is missing"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Output { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// Runs curl, silent but for errors, for 60 seconds at most. Nobody's configuration and no proxy of the environment come in.
///
/// # Panics
/// When it cannot be started.
pub async fn curl(arguments: &[&str]) -> Output {
    let fixed = ["-q", "--noproxy", "*", "--silent", "--show-error", "--max-time", "60"];
    run("curl", fixed.iter().chain(arguments)).await
}

/// Runs a script of varnishtest, with these macros (`-D name=value`).
///
/// # Errors
/// Its log, when it fails.
///
/// # Panics
/// When varnishtest cannot be started.
pub async fn varnishtest(script: &Path, macros: &[(&str, &str)]) -> Result<(), String> {
    let mut arguments: Vec<String> = macros.iter().map(|(name, value)| format!("-D{name}={value}")).collect();
    arguments.push(script.display().to_string());
    let output = run("varnishtest", &arguments).await;
    if output.code == Some(0) { Ok(()) } else { Err(format!("{}\n{}", output.out, output.err)) }
}

/// How many bytes of memory this process has in use, of those that are nobody else's.
///
/// # Panics
/// Where there is no `/proc`.
#[must_use]
pub fn resident_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
