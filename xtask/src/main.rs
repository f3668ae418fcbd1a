//! The project's own tasks: `cargo xtask`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod needs;
mod progress;
mod run;
mod scratch;

use std::hash::BuildHasher as _;
use std::process::ExitCode;

use run::{Failure, cargo, cargo_with};
use scratch::Scratch;

const USAGE: &str = "\
The project's own tasks.

Usage: cargo xtask <TASK>

Tasks:
  test [ARGUMENTS]             install what the tests need and is missing (Debian packages; none of their services is started
                               or enabled), then run all tests, which leave no files but below target;
                               the arguments go to `cargo test`, as in `cargo xtask test -p pointsman-core -- names`
  check                        formatting, lints, also with few features, documentation; builds all examples and benches
  ci                           check, then test: all that continuous integration does
  bench pick [ARGUMENTS]       measure picks against the peers
  bench discovery              measure 1,000 discoveries at once on ZooKeeper
  bench registry [ARGUMENTS]   measure the registry on ZooKeeper, which is installed if missing
  bench mqtt [ARGUMENTS]       measure the relay against Mosquitto's bridge and shared subscriptions; `--quick` for a glance
  bench agent [ARGUMENTS]      measure the agent, its answers against nginx's; `--quick` for a glance
  bench churn [ARGUMENTS]      measure what an agent takes after a long life, and for each change; `--quick` for a glance
  bench http [ARGUMENTS]       measure the proxy beside nginx, HAProxy and pingora; `--quick` for a glance
  bench all                    all of them
  soak [http] [--requests N]   the long runs, in release: the proxy under reloads, hand-overs, killed origins and more, with N requests
                               each (default 1000000); any that fails fails it. The tests have the short form
  soak mqtt [--messages N] [--faults N]
                               the same of the relay: N messages of QoS 1 (default 1000000) while relays, both brokers and services are
                               killed (default 50 times); each that was acknowledged and is lost is shown, and fails it
  soak chaos [--seed N] [--for T]
                               a fleet under load, in release, while its processes, its registry and its proxies are killed, stopped,
                               drained and restarted for T (such as 90s or 5m; default 5m); each request that fails although it could
                               have been answered is shown with what had happened, and fails it. The tests have the short form
  fuzz [TARGET] [SECONDS]      look for failures with cargo-fuzz, which has to be installed; see fuzz/README.md
";

const BENCHES: [&str; 7] = ["pick", "discovery", "registry", "mqtt", "agent", "churn", "http"];
/// Features of the crate `pointsman` that are checked without any other: none, each, and what is likely to be taken together.
const FEATURES: [&str; 14] = [
    "",
    "agent",
    "agent-client",
    "agent-client,tls",
    "agent-client,zookeeper",
    "http",
    "mqtt",
    "serde",
    "testing",
    "tls",
    "tls,zookeeper",
    "tonic",
    "tower",
    "zookeeper",
];
const SOAK_REQUESTS: &str = "1000000";
const SOAK_MESSAGES: &str = "1000000";
const SOAK_FAULTS: &str = "50";
const CHAOS_FOR: &str = "5m";
const FUZZ_TARGETS: [&str; 3] = ["http", "packets", "session"];
const FUZZ_SECONDS: &str = "180";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["test", ref rest @ ..] => test(rest),
        ["check"] => check(),
        ["ci"] => check().and_then(|()| test(&[])),
        ["bench", "all"] => BENCHES.into_iter().try_for_each(|name| bench(name, &[])),
        ["bench", name, ref rest @ ..] if BENCHES.contains(&name) => bench(name, rest),
        ["soak"] | ["soak", "http"] => soak(SOAK_REQUESTS),
        ["soak", "--requests", count] | ["soak", "http", "--requests", count] if count.parse::<u64>().is_ok() => {
            soak(count)
        }
        ["soak", "mqtt", ref rest @ ..] => soak_mqtt(rest),
        ["soak", "chaos", ref rest @ ..] => chaos(rest),
        ["fuzz"] => FUZZ_TARGETS.into_iter().try_for_each(|target| fuzz(target, FUZZ_SECONDS)),
        ["fuzz", target] if FUZZ_TARGETS.contains(&target) => fuzz(target, FUZZ_SECONDS),
        ["fuzz", target, seconds] if FUZZ_TARGETS.contains(&target) && seconds.parse::<u32>().is_ok() => {
            fuzz(target, seconds)
        }
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => Err(wrong_usage(&arguments)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn wrong_usage(arguments: &[&str]) -> Failure {
    let wrong = match arguments {
        [] => "no task given".to_owned(),
        ["bench"] => "bench: which one?".to_owned(),
        _ => format!("no such task: {}", arguments.join(" ")),
    };
    Failure { message: format!("{wrong}\n\n{}", USAGE.trim_end()), code: 2 }
}

fn test(arguments: &[&str]) -> Result<(), Failure> {
    needs::install_missing()?;
    let chosen = |argument: &&str| ["-p", "--package", "--workspace", "--manifest-path"].contains(argument);
    // The benchmarks have no tests, and need a sixth of all packages for themselves.
    let all: &[&str] =
        if arguments.iter().any(chosen) { &[] } else { &["--workspace", "--exclude", "pointsman-bench"] };
    let scratch = Scratch::new()?;
    let environment = scratch.environment();
    let environment = environment.each_ref().map(|(name, value)| (*name, &**value));
    progress::test(&environment, &[&["--all-features"], all, arguments].concat())
}

fn check() -> Result<(), Failure> {
    cargo(&["fmt", "--all", "--check"])?;
    needs::install_missing_to_build()?;
    cargo(&["clippy", "--workspace", "--all-features", "--all-targets", "--", "--deny", "warnings"])?;
    for features in FEATURES {
        let only = ["clippy", "--package", "pointsman", "--no-default-features", "--features", features];
        cargo(&[&only[..], &["--", "--deny", "warnings"]].concat())?;
    }
    // Its unit tests do without the backends; the other tests need them, and have to say so.
    let few = ["clippy", "--package", "pointsman-registry", "--no-default-features", "--all-targets"];
    cargo(&[&few[..], &["--", "--deny", "warnings"]].concat())?;
    cargo_with(&[("RUSTDOCFLAGS", "--deny warnings")], &["doc", "--workspace", "--all-features", "--no-deps"])?;
    cargo(&["build", "--workspace", "--all-features", "--bins", "--examples", "--benches"])
}

fn bench(name: &str, arguments: &[&str]) -> Result<(), Failure> {
    needs::install_missing_for_benches()?;
    let run = ["run", "--profile", "dist", "--package", "pointsman-bench", "--bin", name, "--"];
    cargo(&[&run, arguments].concat())
}

fn soak(requests: &str) -> Result<(), Failure> {
    long_run("soak", &["--skip", "mqtt::"], &[("SOAK_REQUESTS", requests)])
}

fn soak_mqtt(arguments: &[&str]) -> Result<(), Failure> {
    let [mut messages, mut faults] = [SOAK_MESSAGES, SOAK_FAULTS];
    for pair in arguments.chunks(2) {
        match pair {
            ["--messages", count] if count.parse::<u64>().is_ok() => messages = count,
            ["--faults", count] if count.parse::<u64>().is_ok() => faults = count,
            _ => {
                let message = format!("soak mqtt: what is {}?\n\n{}", pair.join(" "), USAGE.trim_end());
                return Err(Failure { message, code: 2 });
            }
        }
    }
    long_run("soak", &["mqtt::"], &[("SOAK_MESSAGES", messages), ("SOAK_FAULTS", faults)])
}

fn chaos(arguments: &[&str]) -> Result<(), Failure> {
    let wrong = |message: String| Failure { message: format!("{message}\n\n{}", USAGE.trim_end()), code: 2 };
    let mut seed = std::collections::hash_map::RandomState::new().hash_one(()) % 1_000_000;
    let mut length = CHAOS_FOR;
    for pair in arguments.chunks(2) {
        match pair {
            ["--seed", text] => seed = text.parse().map_err(|_| wrong(format!("--seed {text}: not a number")))?,
            ["--for", time] if is_time(time) => length = time,
            _ => return Err(wrong(format!("soak chaos: what is {}?", pair.join(" ")))),
        }
    }
    long_run("chaos", &[], &[("CHAOS_SEED", &seed.to_string()), ("CHAOS_FOR", length)])
}

fn is_time(text: &str) -> bool {
    let number = text.strip_suffix("ms").or_else(|| text.strip_suffix(['s', 'm', 'h']));
    number.is_some_and(|number| number.parse::<u64>().is_ok())
}

fn long_run(test: &str, which: &[&str], environment: &[(&str, &str)]) -> Result<(), Failure> {
    needs::install_missing()?;
    let test = ["test", "--release", "--all-features", "--package", "pointsman-cli", "--test", test];
    // One after the other, each with the machine for itself.
    let run = ["--no-fail-fast", "--", "--nocapture", "--test-threads", "1"];
    cargo_with(environment, &[&test[..], &run, which].concat())
}

fn fuzz(target: &str, seconds: &str) -> Result<(), Failure> {
    let time = format!("-max_total_time={seconds}");
    let run = ["fuzz", "run", "--sanitizer", "none", target, "--", &time, "-max_len=2000"];
    // It needs options of rustc that are not stable.
    cargo_with(&[("RUSTC_BOOTSTRAP", "1")], &run)
}
