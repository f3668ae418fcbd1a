//! Explains why a line is not TOML, and suggests the line that was probably meant.

use toml::Table;

/// Explains why a line is not TOML. `message` is the parser's.
pub(super) fn explain(line: &str, message: &str) -> String {
    let line = line.trim();
    let reason = comment(line)
        .or_else(|| json(line))
        .or_else(|| duplicate(line, message))
        .or_else(|| header(line, message))
        .or_else(|| pair(line))
        .unwrap_or_else(|| message.strip_suffix(", expected nothing").unwrap_or(message).to_owned());
    format!("this is not TOML: {reason}")
}

fn comment(line: &str) -> Option<String> {
    let mark = ["//", "/*", ";", "--"].into_iter().find(|mark| line.starts_with(mark))?;
    Some(format!("a comment begins with #, not with {mark}"))
}

fn json(line: &str) -> Option<String> {
    // A table within a list begins with a brace as well, but its keys have no colon.
    let is_json = line.starts_with('{') && line.contains("\":");
    is_json.then(|| "it looks like JSON; write for example [http], and under it listen = \"127.0.0.1:7481\"".to_owned())
}

fn duplicate(line: &str, message: &str) -> Option<String> {
    let key = if line.starts_with('[') { line } else { line.split('=').next().unwrap_or_default().trim() };
    (message == "duplicate key").then(|| format!("{key} is there twice; leave out one"))
}

/// `[http`, `http]` or `[[http.route]`. The end of a list may look like that as well.
fn header(line: &str, message: &str) -> Option<String> {
    let is_about_it = ["unclosed table", "unclosed array table", "key with no value"];
    if !is_about_it.iter().any(|words| message.starts_with(words)) {
        return None;
    }
    let name = line.trim_matches(['[', ']']);
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "._-\"' ".contains(c));
    if !is_name || (name == line && !line.ends_with(']')) {
        return None;
    }
    let fixed = if line.contains("[[") || line.contains("]]") { format!("[[{name}]]") } else { format!("[{name}]") };
    suggestion("the header of a table is incomplete", &fixed)
}

/// A key and a value.
fn pair(line: &str) -> Option<String> {
    let Some((key, value)) = line.split_once('=') else { return without_equals(line) };
    let (key, value) = (key.trim(), value.trim());
    if value.is_empty() || value.starts_with('#') {
        return Some(format!("{key} has no value"));
    }
    let is_flag = ["true", "false"].contains(&value.to_lowercase().as_str());
    if is_flag {
        return suggestion("true and false are written in lower case", &format!("{key} = {}", value.to_lowercase()));
    }
    if let "yes" | "no" | "on" | "off" = value {
        let flag = if matches!(value, "yes" | "on") { "true" } else { "false" };
        return suggestion("a string needs quotes, and TOML has true and false", &format!("{key} = {flag}"))
            .map(|text| format!("{text} or {key} = \"{value}\""));
    }
    if value.contains(['“', '”', '„', '‘', '’']) {
        let plain = value.replace(['“', '”', '„', '‘', '’'], "\"");
        return suggestion("these quotes are not those of TOML", &format!("{key} = {plain}"));
    }
    if let Some(quote) = value.chars().next().filter(|first| ['"', '\''].contains(first)) {
        return unsound_string(key, value, quote);
    }
    let (bare, _) = value.split_once(" #").unwrap_or((value, ""));
    if bare.contains(['[', '{', '"', '\'']) {
        return None;
    }
    suggestion("a string needs quotes", &format!("{key} = \"{}\"", bare.trim()))
}

/// A string that does not end, or that has a backslash in it.
fn unsound_string(key: &str, value: &str, quote: char) -> Option<String> {
    let rest = &value[1..];
    if !rest.contains(quote) {
        let inner = rest.trim_end_matches(['"', '\'']);
        return suggestion("the string does not end", &format!("{key} = {quote}{inner}{quote}"));
    }
    let inner = rest.strip_suffix(quote)?;
    if quote == '"' && inner.contains('\\') && !inner.contains('\'') {
        let reason = "a backslash stands for itself only between single quotes";
        return suggestion(reason, &format!("{key} = '{inner}'"));
    }
    None
}

/// `key: value` or `key value`.
fn without_equals(line: &str) -> Option<String> {
    let at = line.find([':', ' ', '\t'])?;
    let (key, value) = (&line[..at], line[at..].trim_start_matches([':', ' ', '\t']));
    if value.is_empty() {
        return suggestion("the header of a table is in brackets", &format!("[{key}]"));
    }
    let fixed =
        [format!("{key} = {value}"), format!("{key} = \"{value}\"")].into_iter().find(|fixed| is_toml(fixed))?;
    suggestion("there is no = between key and value", &fixed)
}

fn suggestion(reason: &str, fixed: &str) -> Option<String> {
    is_toml(fixed).then(|| format!("{reason}; write {fixed}"))
}

fn is_toml(line: &str) -> bool {
    line.parse::<Table>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the explanation of the line at which the parser stops.
    fn told(text: &str) -> String {
        let error = toml::de::DeTable::parse(text).unwrap_err();
        let at = error.span().unwrap().start;
        let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let told = explain(text[start..].lines().next().unwrap_or_default(), error.message());
        told.strip_prefix("this is not TOML: ").unwrap().to_owned()
    }

    #[test]
    fn what_was_meant_is_told() {
        for (text, expected) in [
            ("listen = 127.0.0.1:80", "a string needs quotes; write listen = \"127.0.0.1:80\""),
            ("keep_alive = 60s  # a minute", "a string needs quotes; write keep_alive = \"60s\""),
            ("reasons = True", "true and false are written in lower case; write reasons = true"),
            ("reasons = yes", "write reasons = true or reasons = \"yes\""),
            ("listen =", "listen has no value"),
            ("listen = # later", "listen has no value"),
            ("listen = “127.0.0.1:80”", "write listen = \"127.0.0.1:80\""),
            ("listen = \"127.0.0.1:80", "the string does not end; write listen = \"127.0.0.1:80\""),
            ("listen = '127.0.0.1:80\"", "the string does not end; write listen = '127.0.0.1:80'"),
            ("match = \"^/\\d\"", "write match = '^/\\d'"),
            ("listen: \"127.0.0.1:80\"", "no = between key and value; write listen = \"127.0.0.1:80\""),
            ("  listen: 127.0.0.1:80", "write listen = \"127.0.0.1:80\""),
            ("workers 4", "write workers = 4"),
            ("http:", "in brackets; write [http]"),
            ("[http", "the header of a table is incomplete; write [http]"),
            ("http]", "write [http]"),
            ("[[http.route]", "write [[http.route]]"),
            ("// comment", "a comment begins with #, not with //"),
            ("; comment", "a comment begins with #, not with ;"),
            ("{\"http\": {}}", "under it listen = \"127.0.0.1:7481\""),
            ("max_head = 1_000_", "write max_head = \"1_000_\""),
            ("workers = 4\nworkers = 5", "workers is there twice; leave out one"),
            ("[http]\n[http]", "[http] is there twice; leave out one"),
            // Within a list a line may look like something else.
            ("trusted = [\"a\" \"b\"]", "missing comma between array elements, expected `,`"),
            ("trusted = [\n\"a\"\n\"b\"]", "missing comma between array elements, expected `,`"),
            ("route = [\n{ match = 'a' service = 'b' }]", "missing comma between key-value pairs, expected `,`"),
        ] {
            let told = told(text);
            assert!(told.ends_with(expected), "{text}: {told}");
        }
    }
}
