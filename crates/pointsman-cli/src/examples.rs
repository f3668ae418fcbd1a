//! The examples of `--help`, each of which a test runs (`tests/commands.rs`).

use clap::Command;
use clap::builder::StyledStr;

/// Examples of each command that has none in its own text.
const EXAMPLES: [(&str, &[&str]); 21] = [
    ("dev", &["pointsman dev", "pointsman dev --tour"]),
    (
        "serve",
        &[
            "pointsman serve --config p.toml",
            "pointsman serve --set agent.listen=127.0.0.1:7480",
            "pointsman serve --set http.route.0.path_prefix=/ --set http.route.0.service=ress",
        ],
    ),
    ("check", &["pointsman check p.toml", "pointsman check p.toml -o json"]),
    (
        "config",
        &[
            "pointsman config sample > sample.toml",
            "pointsman config explain http.route",
            "pointsman config explain http.route.retries",
        ],
    ),
    ("services", &["pointsman services", "pointsman services -o name"]),
    ("instances", &["pointsman instances ress", "pointsman instances ress --all -o wide"]),
    ("master", &["pointsman master ress", "pointsman master ress -o json"]),
    ("watch", &["pointsman watch", "pointsman watch ress -o json"]),
    (
        "pick",
        &[
            "pointsman pick ress --algorithm least-connections --count 20",
            "pointsman pick ress --algorithm ip-hash --key 192.168.9.2 --explain",
        ],
    ),
    ("drain", &["pointsman drain ress ress-1"]),
    ("undrain", &["pointsman undrain ress ress-1"]),
    ("weight", &["pointsman weight ress ress-1 5", "pointsman weight ress ress-1 --reset"]),
    ("resign", &["pointsman resign ress ress-1"]),
    ("deregister", &["pointsman deregister ress ress-1"]),
    ("history", &["pointsman history ress", "pointsman history ress -o json"]),
    ("overrides", &["pointsman overrides", "pointsman overrides ress -o yaml"]),
    ("status", &["pointsman status", "pointsman status -o json"]),
    ("version", &["pointsman version", "pointsman version -o json"]),
    ("audit", &["pointsman audit", "pointsman audit ress -o json"]),
    ("man", &["pointsman man man1"]),
    ("completions", &["pointsman completions bash > pointsman.bash"]),
];

/// Adds the examples to the help of each command.
pub(crate) fn add(command: Command) -> Command {
    EXAMPLES.into_iter().fold(command, |command, (name, examples)| {
        command.mut_subcommand(name, |subcommand| {
            let before = subcommand.get_after_help().map(StyledStr::to_string);
            let before = before.map_or_else(String::new, |text| format!("{text}\n\n"));
            subcommand.after_help(format!("{before}Examples:\n  {}", examples.join("\n  ")))
        })
    })
}
