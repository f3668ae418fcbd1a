//! The transcripts: how a case is written down.

use std::fmt;

/// A mistake.
#[derive(Debug, Default)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// By name, with what is in them.
    pub(crate) files: Vec<(String, String)>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) command: String,
    /// The exit code, and what the command says.
    pub(crate) told: String,
}

/// The cases of a transcript.
pub(crate) fn parse(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            cases.push(Case { name: name.to_owned(), ..Case::default() });
            continue;
        }
        let case = cases.last_mut().unwrap();
        if !case.command.is_empty() {
            case.told += &format!("{line}\n");
        } else if let Some(command) = line.strip_prefix("$ ") {
            command.clone_into(&mut case.command);
        } else if let Some(name) = line.strip_prefix("> ") {
            case.files.push((name.to_owned(), String::new()));
        } else if let Some(variable) = line.strip_prefix("env ") {
            let (name, value) = variable.split_once('=').unwrap();
            case.variables.push((name.to_owned(), value.to_owned()));
        } else {
            case.files.last_mut().unwrap().1 += &format!("{line}\n");
        }
    }
    // An empty line is between two cases.
    for case in &mut cases {
        case.told = case.told.strip_suffix("\n\n").map_or(case.told.clone(), |told| format!("{told}\n"));
    }
    cases
}

/// As it is written down, with an empty line after it.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## {}", self.name)?;
        for (name, text) in &self.files {
            write!(f, "> {name}\n{text}")?;
        }
        for (name, value) in &self.variables {
            writeln!(f, "env {name}={value}")?;
        }
        writeln!(f, "$ {}\n{}", self.command, self.told)
    }
}

/// The words of a command line, where single quotes keep spaces together.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut is_quoted, mut is_word) = (false, false);
    for c in line.chars() {
        match c {
            '\'' => (is_quoted, is_word) = (!is_quoted, true),
            ' ' if !is_quoted => {
                if is_word {
                    words.push(String::new());
                }
                is_word = false;
            }
            c => {
                words.last_mut().unwrap().push(c);
                is_word = true;
            }
        }
    }
    words
}
