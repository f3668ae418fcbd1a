//! The command line of Pointsman.
//!
//! | question | file |
//! |---|---|
//! | what can be typed | `args.rs` |
//! | how an object looks in JSON, how in a table | `json.rs`, `table.rs` |
//! | how a shell completes names from the registry | `completion.rs` |
//! | who may print; what a reader that went away means | `output.rs` |
//! | how codes are shortened, and found by a prefix | `codes.rs` |
//! | what is in order in a registry, and what is not | `status.rs` |
//! | how a failure is told, and with which exit code | `failure.rs` |
//! | how a program is run beside its registration | `register.rs`, `child.rs` |
//! | what the service manager is told | `supervisor.rs` |
//! | why no command has huge pages | `memory.rs` |
//! | what a configuration file may say, and what is wrong with it | `config.rs`, `config/`, `check.rs` |
//! | how a configuration file's settings are explained | `settings.rs` |
//! | how what it says is run, and changed while it runs | `serve.rs`, `serve/` |
//! | what `pointsman dev` shows, and how its tour checks itself | `dev.rs`, `dev/` |

mod args;
mod audit;
mod check;
mod child;
mod codes;
mod completion;
mod config;
mod dev;
mod examples;
mod failure;
mod json;
mod list;
mod log;
mod memory;
mod operate;
mod output;
mod passwd;
mod pick;
mod register;
mod serve;
mod session;
mod settings;
mod signals;
mod status;
mod supervisor;
mod table;
mod term_base;
mod version;
mod watch;

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::args::{Args, Command, MqttCommand};
use crate::failure::Failure;

/// How a command ends when nothing has gone wrong.
type Outcome = Result<ExitCode, Failure>;

/// Reads the arguments and the environment of this process and does what they say.
#[must_use]
pub fn run() -> ExitCode {
    memory::stay_small();
    completion::answer();
    let args = match Args::read() {
        Ok(args) => args,
        Err(error) => {
            // A reader that went away does not change what is to be said.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let informs = matches!(args.command, Command::Serve(_));
    log::start(&args.global, dev::draws(&args.command, args.global.output), informs);
    let serves = matches!(args.command, Command::Serve(_) | Command::Dev(_));
    let runtime = match runtime(serves) {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(format!("start the runtime: {error}")).tell(&args.global),
    };
    let Args { global, command } = args;
    match runtime.block_on(carry_out(command, &global)) {
        Ok(code) => code,
        Err(failure) => failure.tell(&global),
    }
}

/// All cores for those who serve. Whatever else there is runs on one thread beside this one, which writes to stdout: a terminal that is
/// held up must not hold up the heartbeats. More threads would cost each registered instance memory for nothing.
fn runtime(serves: bool) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if !serves {
        builder.worker_threads(1);
    }
    builder.enable_all().build()
}

async fn carry_out(command: Command, global: &args::Global) -> Outcome {
    supervisor::feed_watchdog();
    match command {
        Command::Dev(dev) => dev::run(&dev, global).await,
        Command::Serve(serve) => serve::run(&serve, global).await,
        Command::Config { command } => settings::run(&command, global),
        Command::Check(check) => check::run(&check, global),
        Command::Mqtt { command: MqttCommand::Passwd(passwd) } => passwd::run(&passwd).await,
        Command::Register(register) => register::run(register, global).await,
        Command::Services => list::services(global).await,
        Command::Instances(instances) => list::instances(&instances, global).await,
        Command::Master { service } => list::master(&service, global).await,
        Command::Watch { service } => watch::run(service.as_deref(), global).await,
        Command::Pick(pick) => pick::run(&pick, global).await,
        Command::Drain(target) => operate::drain(&target, true, global).await,
        Command::Undrain(target) => operate::drain(&target, false, global).await,
        Command::Weight(weight) => operate::weight(&weight, global).await,
        Command::TermBase(term_base) => term_base::run(&term_base, global).await,
        Command::Overrides(of) => operate::overrides(of.service.as_deref(), global).await,
        Command::ClearOverrides(of) => operate::clear_overrides(of.service.as_deref(), global).await,
        Command::Resign(of) => operate::resign(&of, global).await,
        Command::Deregister(of) => operate::deregister(&of, global).await,
        Command::History { service } => audit::history(&service, global).await,
        Command::Audit(of) => audit::run(of.service.as_deref(), global).await,
        Command::Status => status::run(global).await,
        Command::Version => version::run(global),
        Command::Completions { shell } => completions(shell),
        Command::Man { folder } => manual(&folder),
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "pointsman", &mut script);
    output::raw(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a manual page of each command into a folder.
fn manual(folder: &std::path::Path) -> Outcome {
    let written = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Args::command(), folder));
    written.map_err(|error| Failure::new(format!("write manual pages to {}: {error}", folder.display())))?;
    Ok(ExitCode::SUCCESS)
}
