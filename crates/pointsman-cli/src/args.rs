//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{FalseyValueParser, PossibleValuesParser, StyledStr, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgGroup, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;
use pointsman::{Algorithm, Candidates, MAX_TERM_BASE, MAX_WEIGHT};

use crate::child::PARENT_CODE;
use crate::completion;
use crate::examples;

/// Service registration, master election and load balancing.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Args {
    /// Reads the arguments and the environment of this process.
    ///
    /// # Errors
    ///
    /// As clap says it; help and version as well.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let matches = examples::add(Self::command()).try_get_matches().map_err(with_tip)?;
        let mut args = Self::from_arg_matches(&matches)?;
        if let Command::Register(register) = &mut args.command {
            // In a command that runs beside a registration the variable holds the code of that one, which no other can have. A value that the
            // command has set itself counts.
            let source = matches.subcommand_matches("register").and_then(|matches| matches.value_source("code"));
            let parent = std::env::var(PARENT_CODE).ok().filter(|_| source == Some(ValueSource::EnvVariable));
            register.code.take_if(|code| parent.as_ref() == Some(code));
            // As of `register ress -- $COMMAND`, where the variable is empty.
            if register.command.is_empty() && std::env::args_os().next_back().is_some_and(|last| last == "--") {
                let message = "there is no command after --; without one, leave out -- as well";
                return Err(Self::command().error(ErrorKind::MissingRequiredArgument, message));
            }
        }
        Ok(args)
    }
}

/// Adds what was probably meant: a command that is run beside a registration goes after `--`.
fn with_tip(mut error: clap::Error) -> clap::Error {
    let is_program = |context: Option<&ContextValue>| match context {
        Some(ContextValue::String(argument)) => !argument.starts_with('-'),
        _ => false,
    };
    let registers = std::env::args_os().nth(1).is_some_and(|command| command == "register");
    if registers && error.kind() == ErrorKind::UnknownArgument && is_program(error.get(ContextKind::InvalidArg)) {
        let tip = StyledStr::from("a command to run goes after --, as in: register SERVICE -- COMMAND");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

const AFTER_HELP: &str = "\
Every flag has a variable, which the flag beats: --registry is POINTSMAN_REGISTRY, and so on.
Exit codes: 0 success, 1 failure, 2 wrong usage; `register -- COMMAND` exits with the command's.

New here? `pointsman dev` runs everything on this machine; `pointsman dev --tour` explains it.";

/// An agent on this machine.
pub(crate) const DEFAULT_REGISTRY: &str = "http://127.0.0.1:7480";

/// Flags of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Where registrations live: `zookeeper://HOST:PORT,HOST:PORT/PREFIX`, with `?session_timeout=10s` and the like; the
    /// `http://HOST:PORT,HOST:PORT` for agents [default: that of a `pointsman dev` that runs, else an agent on this machine, http://127.0.0.1:7480]
    // Whether it was given matters: then it beats a configuration file.
    #[arg(
        long,
        value_name = "URL",
        env = "POINTSMAN_REGISTRY",
        // A url may hold a password.
        hide_env_values = true,
        global = true
    )]
    pub(crate) registry: Option<String>,
    /// How data is written to stdout
    #[arg(long, short, value_name = "FORMAT", env = "POINTSMAN_OUTPUT", default_value = "table", global = true)]
    pub(crate) output: Output,
    /// How the log is written to stderr
    #[arg(long, value_name = "FORMAT", env = "POINTSMAN_LOG_FORMAT", default_value = "text", global = true)]
    pub(crate) log_format: LogFormat,
    /// Log more: -v informs, -vv is for finding errors
    #[arg(long, short, env = "POINTSMAN_VERBOSE", action = ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Go on trying until the registry answers
    #[arg(long, env = "POINTSMAN_WAIT", value_parser = FalseyValueParser::new(), global = true)]
    pub(crate) wait: bool,
    /// How long to try otherwise, for example 500ms or 10s [default: the url's option, or 5s]
    #[arg(
        long,
        value_name = "TIME",
        env = "POINTSMAN_CONNECT_TIMEOUT",
        value_parser = duration,
        global = true
    )]
    pub(crate) connect_timeout: Option<Duration>,
}

/// How data is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people; a table that is wider than the terminal shows codes as their shortest unique prefixes, and no tags
    Table,
    /// A table with whole codes, whatever the terminal's width
    Wide,
    /// One line of JSON; `watch` and `register` write a line for each event
    Json,
    /// YAML
    Yaml,
    /// Names alone, a line each: SERVICE, or SERVICE/CODE
    Name,
}

impl Output {
    /// Whether programs read it as data.
    pub(crate) fn is_data(self) -> bool {
        matches!(self, Output::Json | Output::Yaml)
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine, embedded, and show it live
    Dev(Dev),
    /// Run what a configuration file says: the agent, the HTTP proxy, the MQTT relay, the embedded broker
    Serve(Serve),
    /// Say what is wrong with a configuration file, with line and column; or what it would run
    Check(Check),
    /// Explain the settings of a configuration file
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Look after the embedded MQTT broker
    #[command(after_help = AFTER_MQTT)]
    Mqtt {
        #[command(subcommand)]
        command: MqttCommand,
    },
    /// Keep an instance registered, alone or for as long as a command runs
    Register(Register),
    /// List the services
    #[command(visible_aliases = ["ls", "list"])]
    Services,
    /// List the instances of a service
    Instances(Instances),
    /// Show the master of a service
    Master {
        /// The service
        #[arg(value_parser = service_name, add = ArgValueCandidates::new(completion::services))]
        service: String,
    },
    /// Follow what changes, of one service or of all
    Watch {
        /// The service; all when left out
        #[arg(value_parser = service_name, add = ArgValueCandidates::new(completion::services))]
        service: Option<String>,
    },
    /// Pick instances as a balancer does
    Pick(Pick),
    /// Give an instance no new calls, until it is undrained
    Drain(Target),
    /// End a drain
    Undrain(Target),
    /// Set the weight that counts instead of the registered one
    Weight(Weight),
    /// Show what terms are above; or raise it, so that they rise across a change of registry
    TermBase(TermBase),
    /// List what operators have set (drains, weights), also for codes that are not registered
    Overrides(OfService),
    /// Clear what operators have set for codes that are not registered
    #[command(after_help = AFTER_CLEAR_OVERRIDES)]
    ClearOverrides(OfService),
    /// Let a master that is registered through an agent hand the mastership over to another instance
    Resign(OfInstance),
    /// End a registration that an agent keeps, such as one whose process is gone
    #[command(after_help = AFTER_DEREGISTER)]
    Deregister(OfInstance),
    /// List the masters of a service, the newest first, as agents have seen them
    History {
        /// The service
        #[arg(value_parser = service_name, add = ArgValueCandidates::new(completion::services))]
        service: String,
    },
    /// List what operators have done through agents, the newest first
    Audit(OfService),
    /// Say whether the registry and its services are in order; exits with 1 where they are not
    #[command(after_help = AFTER_STATUS)]
    Status,
    /// Say which build this is
    Version,
    /// Write a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one for each command
    Man {
        /// The folder; it is made where it is not there
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

const AFTER_DEV: &str = "\
While it runs, the other commands use its registry, unless --registry or POINTSMAN_REGISTRY names another. On a terminal it is a live \
view; elsewhere, or with TERM=dumb, it writes lines. Colours are left out with NO_COLOR.";

#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_DEV)]
pub(crate) struct Dev {
    /// Walk through the whole story, check each step, and end
    #[arg(long, env = "POINTSMAN_TOUR", value_parser = FalseyValueParser::new())]
    pub(crate) tour: bool,
    /// How long the tour waits after each step, to be read along [default: 900ms on a terminal, else not at all]
    #[arg(long, value_name = "TIME", env = "POINTSMAN_PACE", value_parser = duration)]
    pub(crate) pace: Option<Duration>,
}

const AFTER_SERVE: &str = "\
It goes on until SIGINT or SIGTERM: then it deregisters, sees through what is under way, and exits with 0; a second signal \
ends it at once. The file is watched, and read again on SIGHUP too; a file with an error changes nothing. So are the agent's \
tokens and certificates.

An agent whose file names no tokens gets POINTSMAN_AGENT_READ_TOKEN and POINTSMAN_AGENT_WRITE_TOKEN. With [agent] and no \
registry the agent itself is the registry, in memory.

Brokers whose url has no user name get POINTSMAN_MQTT_USER, with POINTSMAN_MQTT_PASSWORD or POINTSMAN_MQTT_PASSWORD_FILE.
--registry beats the file's `registry`, but not that of a section or of a route.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_SERVE)]
#[command(group = ArgGroup::new("what").args(["config", "set"]).required(true).multiple(true))]
pub(crate) struct Serve {
    /// The configuration file, TOML; `pointsman check FILE` says what is wrong with it
    #[arg(long, short, value_name = "FILE", env = "POINTSMAN_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// A setting that beats the file's, such as http.listen=0.0.0.0:80 or http.route.0.service=ress; may be repeated (in the
    /// variable: a line each)
    #[arg(long, value_name = "KEY=VALUE", env = "POINTSMAN_SET", hide_env_values = true, value_delimiter = '\n')]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Write a configuration file with every setting as a comment
    Sample,
    /// Say what settings mean, their types, bounds and defaults
    Explain {
        /// A setting or a section, such as http.route; all when left out
        key: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MqttCommand {
    /// Add a user to a users file, or change or delete one
    #[command(after_help = AFTER_PASSWD)]
    Passwd(Passwd),
}

const AFTER_MQTT: &str = "\
Examples:
  pointsman mqtt passwd /etc/pointsman/users anna";

const AFTER_PASSWD: &str = "\
The password is asked for on the terminal, or read from stdin, up to the end of its first line. The file is what `users_file` of [mqtt] \
names; it is made if it is not there, holds hashes only (Argon2id), and is taken up by a running `pointsman serve` at once.

Examples:
  pointsman mqtt passwd /etc/pointsman/users anna
  openssl rand -hex 16 | tee anna.password | pointsman mqtt passwd /etc/pointsman/users anna
  pointsman mqtt passwd /etc/pointsman/users anna --delete";

#[derive(Debug, clap::Args)]
pub(crate) struct Passwd {
    /// The users file
    pub(crate) file: PathBuf,
    /// The user
    pub(crate) user: String,
    /// Delete the user
    #[arg(long)]
    pub(crate) delete: bool,
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").args(["file", "set"]).required(true).multiple(true))]
pub(crate) struct Check {
    /// The file
    pub(crate) file: Option<PathBuf>,
    /// A setting that beats the file's, as of `serve`
    #[arg(long, value_name = "KEY=VALUE", env = "POINTSMAN_SET", hide_env_values = true, value_delimiter = '\n')]
    pub(crate) set: Vec<String>,
}

const AFTER_REGISTER: &str = "\
Without a command it stays until SIGINT, SIGTERM, SIGQUIT or SIGHUP, and writes each role to stdout: master (with its term), normal, detached.

With a command, stdout is the command's, and roles go to stderr (with -o json to stdout). The command finds its service and \
code in POINTSMAN_SERVICE and POINTSMAN_CODE; it inherits neither the other variables of this command nor secrets. SIGINT, \
SIGTERM and SIGQUIT deregister first, and are then handed on; SIGHUP, SIGUSR1, SIGUSR2 and SIGWINCH are only handed on. After a \
`kill -9` of pointsman itself the command runs on; its registration ends with the session.

Under systemd use Type=notify: it is told when the instance is registered, its role, and the end; WatchdogSec= works.

Examples:
  pointsman register cfgs --code cfgs-1 -o json
  pointsman register ress --address 10.0.0.7:80 --weight 3 --tag zone=eu-1
  pointsman register ress --address 10.0.0.7:80 --check tcp -- ./ress";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_REGISTER)]
pub(crate) struct Register {
    /// The service to register under
    #[arg(value_parser = service_name, add = ArgValueCandidates::new(completion::services))]
    pub(crate) service: String,
    /// Where the instance listens, HOST:PORT; a service behind a message broker has no address
    #[arg(long, value_name = "HOST:PORT", env = "POINTSMAN_ADDRESS", value_parser = address)]
    pub(crate) address: Option<String>,
    /// The instance's unique code; generated when left out
    #[arg(long, env = "POINTSMAN_CODE", value_parser = code_name)]
    pub(crate) code: Option<String>,
    /// Its share of the calls, relative to the others'; 0 means drained
    #[arg(long, value_name = "N", env = "POINTSMAN_WEIGHT", default_value_t = 1, value_parser = weight, allow_negative_numbers = true)]
    pub(crate) weight: u32,
    /// Free metadata; may be repeated (in the variable: one a line)
    #[arg(long = "tag", value_name = "NAME=VALUE", env = "POINTSMAN_TAG", value_parser = tag, value_delimiter = '\n')]
    pub(crate) tags: Vec<(String, String)>,
    /// Never be master, even if no other instance is there
    #[arg(long, env = "POINTSMAN_OBSERVER", value_parser = FalseyValueParser::new())]
    pub(crate) observer: bool,
    /// How long the command may take to end after the signal before it is killed
    #[arg(long, value_name = "TIME", env = "POINTSMAN_STOP_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub(crate) stop_timeout: Duration,
    /// A command to run: registered while it runs, deregistered the moment it ends
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
    // Last, because its heading would go on over what follows.
    #[command(flatten)]
    pub(crate) check: CheckArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Health check: registered only while it passes")]
pub(crate) struct CheckArgs {
    /// What to ask: `tcp` (the address), `tcp://HOST:PORT` or `http://HOST:PORT/PATH`
    #[arg(long = "check", value_name = "WHAT", env = "POINTSMAN_CHECK")]
    pub(crate) what: Option<String>,
    /// From one check to the next
    #[arg(
        long = "check-interval",
        value_name = "TIME",
        env = "POINTSMAN_CHECK_INTERVAL",
        default_value = "2s",
        value_parser = duration
    )]
    pub(crate) interval: Duration,
    /// How long a check may take
    #[arg(
        long = "check-timeout",
        value_name = "TIME",
        env = "POINTSMAN_CHECK_TIMEOUT",
        default_value = "1s",
        value_parser = duration
    )]
    pub(crate) timeout: Duration,
    /// So many passed in a row register the instance
    #[arg(
        long = "check-rise",
        value_name = "N",
        env = "POINTSMAN_CHECK_RISE",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(crate) rise: u32,
    /// So many failed in a row deregister it
    #[arg(
        long = "check-fall",
        value_name = "N",
        env = "POINTSMAN_CHECK_FALL",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(crate) fall: u32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Instances {
    /// The service
    #[arg(value_parser = service_name, add = ArgValueCandidates::new(completion::services))]
    pub(crate) service: String,
    /// Also those that get no calls, and what is not, or not quite, an instance
    #[arg(long, short, env = "POINTSMAN_ALL", value_parser = FalseyValueParser::new())]
    pub(crate) all: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Pick {
    /// The service
    #[arg(value_parser = service_name, add = ArgValueCandidates::new(completion::services))]
    pub(crate) service: String,
    /// How to choose
    #[arg(long, short, env = "POINTSMAN_ALGORITHM", default_value = "round-robin", value_parser = algorithm())]
    pub(crate) algorithm: Algorithm,
    /// Among which instances: the normal ones (the master where none of them can serve), the master alone, or all
    #[arg(long, env = "POINTSMAN_ROLE", default_value = "normal", value_parser = role())]
    pub(crate) role: Candidates,
    /// What a hash is taken of: a client's address, a path
    #[arg(long, short, env = "POINTSMAN_KEY", default_value = "")]
    pub(crate) key: String,
    /// How many to pick, as if all the calls were under way at once
    #[arg(
        long,
        short = 'n',
        value_name = "N",
        env = "POINTSMAN_COUNT",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub(crate) count: u32,
    /// Also say who the candidates were, who was left out, and why
    #[arg(long, env = "POINTSMAN_EXPLAIN", value_parser = FalseyValueParser::new())]
    pub(crate) explain: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The service
    #[arg(value_parser = service_name, add = ArgValueCandidates::new(completion::services))]
    pub(crate) service: String,
    /// The instance's code
    #[arg(value_parser = code_name, add = ArgValueCandidates::new(completion::codes))]
    pub(crate) code: String,
    /// Even if no instance has that code now
    #[arg(long, env = "POINTSMAN_FORCE", value_parser = FalseyValueParser::new())]
    pub(crate) force: bool,
}

const AFTER_DEREGISTER: &str = "\
A process that holds its registration registers again at once: to take its instance out of service, drain it. On ZooKeeper only the process that has \
registered an instance can end that.";

#[derive(Debug, clap::Args)]
pub(crate) struct OfInstance {
    /// The service
    #[arg(value_parser = service_name, add = ArgValueCandidates::new(completion::services))]
    pub(crate) service: String,
    /// The instance's code, or a prefix of it that no other code of the service begins with
    #[arg(value_parser = code_name, add = ArgValueCandidates::new(completion::codes))]
    pub(crate) code: String,
}

const AFTER_STATUS: &str = "\
Not in order: a registry that is away, a service without a master or of which no instance takes work, a sudden mass loss, what cannot be read, or \
not as it is. Some drained instances among others are a note.";

const AFTER_CLEAR_OVERRIDES: &str = "\
What is set for a code that does not register again is cleared by itself, seven days after it was last registered. This \
command does it at once: do not use it while instances are away that are to come back drained.";

#[derive(Debug, clap::Args)]
pub(crate) struct OfService {
    /// The service; all when left out
    #[arg(value_parser = service_name, add = ArgValueCandidates::new(completion::services))]
    pub(crate) service: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("change").required(true).args(["weight", "reset"])))]
#[command(override_usage = "pointsman weight [OPTIONS] <SERVICE> <CODE> <N|--reset>")]
pub(crate) struct Weight {
    #[command(flatten)]
    pub(crate) target: Target,
    /// The weight; 0 means drained
    #[arg(value_name = "N", value_parser = weight, allow_negative_numbers = true)]
    pub(crate) weight: Option<u32>,
    /// Let the registered weight count again
    #[arg(long, env = "POINTSMAN_RESET", value_parser = FalseyValueParser::new())]
    pub(crate) reset: bool,
}

const AFTER_TERM_BASE: &str = "\
A term is the registry's own number on top of the term base. It is for a fleet that moves from one registry to another whose numbers are \
lower, as from memory:// to ZooKeeper: whoever has stored the old terms would refuse every master of the new one. Raise the base of \
the new registry above the highest old term before services register there. It counts for masters that come from then on; a master \
that there is keeps its term, until `pointsman drain` or its end makes another one master. It can only be raised: terms never fall. It \
is stored in the registry, for its prefix.

Examples:
  pointsman services --registry OLD -o json | jq 'map(.term // 0) | max'   # the highest term of the masters that there are
  pointsman term-base --registry NEW --above 1795418027019215
  pointsman term-base --registry NEW --above $(date +%s%6N)                # above every term of a memory:// until now";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_TERM_BASE)]
pub(crate) struct TermBase {
    /// Let every term that is granted from now on be above this one; nothing happens where they are already
    #[arg(
        long,
        value_name = "TERM",
        env = "POINTSMAN_ABOVE",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u64).range(..=MAX_TERM_BASE.0)
    )]
    pub(crate) above: Option<u64>,
}

fn duration(text: &str) -> Result<Duration, String> {
    match pointsman::parse_duration(text).map_err(|error| error.to_string())? {
        Duration::ZERO => Err("must be above zero".to_owned()),
        duration => Ok(duration),
    }
}

fn service_name(text: &str) -> Result<String, pointsman::InvalidName> {
    pointsman::check_name("service", text).map(|()| text.to_owned())
}

fn code_name(text: &str) -> Result<String, pointsman::InvalidName> {
    pointsman::check_name("code", text).map(|()| text.to_owned())
}

fn address(text: &str) -> Result<String, pointsman::InvalidInstance> {
    pointsman::check_address(text).map(|()| text.to_owned())
}

fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a tag is written NAME=VALUE".to_owned()),
    }
}

fn weight(text: &str) -> Result<u32, String> {
    let weight = text.parse().ok().filter(|weight| *weight <= MAX_WEIGHT);
    weight.ok_or_else(|| format!("a weight is a whole number from 0 to {MAX_WEIGHT}"))
}

/// Among which instances to pick, by the words of the table in `docs/choosing.md`.
fn role() -> impl TypedValueParser<Value = Candidates> {
    PossibleValuesParser::new(Candidates::ALL.map(Candidates::name)).try_map(|name| name.parse::<Candidates>())
}

/// Shows the names in the help and in completions, and takes every other spelling that the library takes.
fn algorithm() -> impl TypedValueParser<Value = Algorithm> {
    AlgorithmParser
}

#[derive(Clone)]
struct AlgorithmParser;

impl TypedValueParser for AlgorithmParser {
    type Value = Algorithm;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Algorithm, clap::Error> {
        let parser = |text: &str| text.parse::<Algorithm>();
        TypedValueParser::parse_ref(&parser, command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = clap::builder::PossibleValue> + '_>> {
        Some(Box::new(Algorithm::ALL.iter().map(|algorithm| clap::builder::PossibleValue::new(algorithm.name()))))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_variable() {
        let mut commands: Vec<clap::Command> = Args::command().get_subcommands().cloned().collect();
        commands.push(Args::command());
        for command in commands {
            for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
                let (Some(long), false) = (arg.get_long(), matches!(arg.get_id().as_str(), "help" | "version")) else {
                    continue;
                };
                let expected = format!("POINTSMAN_{}", long.to_uppercase().replace('-', "_"));
                assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(&*expected), "{}", command.get_name());
            }
        }
    }

    #[test]
    fn a_full_register_line() {
        let line = "pointsman register ress --address 127.0.0.1:80 --code a --weight 3 --tag zone=eu=1 --tag x= \
                    --check tcp --check-fall 2 -o json -vv -- sh -c exit";
        let Args { global, command: Command::Register(register) } = parse(&line.replace("  ", "")).unwrap() else {
            panic!("register was read as another command");
        };
        assert_eq!((global.output, global.verbose), (Output::Json, 2));
        assert_eq!(register.tags, [("zone".into(), "eu=1".into()), ("x".into(), String::new())]);
        assert_eq!((register.weight, register.check.fall, register.check.rise), (3, 2, 1));
        assert_eq!(register.command, ["sh", "-c", "exit"]);
    }

    #[test]
    fn wrong_usage_is_named() {
        for (line, word) in [
            ("pointsman register a/b", "1 to 255 bytes"),
            ("pointsman register s --code $x", "1 to 255 bytes"),
            ("pointsman register s --address host", "host:port"),
            ("pointsman register s --address h:70000", "65535"),
            ("pointsman register s --weight 1000001", "1000000"),
            ("pointsman register s --weight -1", "--weight"),
            ("pointsman register s --tag zone", "NAME=VALUE"),
            ("pointsman register s --check-interval 0s", "above zero"),
            ("pointsman register s --check-interval 5", "10s"),
            ("pointsman register s --check-rise 0", "--check-rise"),
            ("pointsman pick s --algorithm best", "round-robin"),
            ("pointsman pick s --count 0", "--count"),
            ("pointsman weight s c", "<N|--reset>"),
            ("pointsman weight s c -1", "1000000"),
            ("pointsman weight s c 1 --reset", "--reset"),
            ("pointsman term-base --above -1", "--above"),
            ("pointsman term-base --above 4503599627370497", "4503599627370496"),
            ("pointsman instances a/b", "1 to 255 bytes"),
            ("pointsman watch a+b", "1 to 255 bytes"),
            ("pointsman services -o xml", "table, wide, json, yaml, name"),
            ("pointsman", "Usage"),
            ("pointsman serve", "--config <FILE>|--set <KEY=VALUE>"),
            ("pointsman check", "<FILE|--set <KEY=VALUE>>"),
        ] {
            let error = parse(line).map(|_| ()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn a_registry_that_is_not_given_is_known_as_such() {
        assert_eq!(parse("pointsman services").unwrap().global.registry, None);
        let line = "pointsman serve -c p.toml --registry zookeeper://h/p";
        let Args { global, command: Command::Serve(serve) } = parse(line).unwrap() else {
            panic!("serve was read as another command");
        };
        assert_eq!((global.registry.as_deref(), serve.config), (Some("zookeeper://h/p"), Some("p.toml".into())));
    }

    #[test]
    fn algorithms_are_read_as_the_library_reads_them() {
        for algorithm in Algorithm::ALL {
            let Command::Pick(pick) = parse(&format!("pointsman pick s -a {algorithm}")).unwrap().command else {
                panic!("pick was read as another command");
            };
            assert_eq!(pick.algorithm, algorithm);
        }
    }
}
