//! What a request says: its path, its query, its body. What is wrong is named.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use axum::extract::{FromRequestParts, Path};
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Uri};
use pointsman_core::check_name;
use pointsman_net::percent;
use serde::de::{self, DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::problem::{Kind, Problem};

/// The service of the path.
pub(super) struct OfService(pub(super) String);

/// The service and the code of the path.
pub(super) struct OfInstance(pub(super) String, pub(super) String);

/// The last part of the path.
pub(super) struct Last(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for OfService {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(service) = Path::<String>::from_request_parts(parts, state).await.map_err(|error| path(&error))?;
        check_name("service", &service)?;
        Ok(Self(service))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for OfInstance {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((service, code)) =
            Path::<(String, String)>::from_request_parts(parts, state).await.map_err(|error| path(&error))?;
        check_name("service", &service)?;
        check_name("code", &code)?;
        Ok(Self(service, code))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Last {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Path::<String>::from_request_parts(parts, state)
            .await
            .map(|Path(last)| Self(last))
            .map_err(|error| path(&error))
    }
}

fn path(rejection: &axum::extract::rejection::PathRejection) -> Problem {
    Problem::bad(format!("the path: {}", rejection.body_text()))
}

/// What stands after `?`: each name once, unless it may be there several times.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads it. A name that is none of `known` is an error; so is one that is there twice, unless it is `several`.
    pub(super) fn read(uri: &Uri, known: &[&str], several: Option<&str>) -> Result<Self, Problem> {
        let text = uri.query().unwrap_or_default();
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            if !known.contains(&&*name) {
                let known = if known.is_empty() { "none are".to_owned() } else { known.join(", ") };
                return Err(Problem::bad(format!("query: {} is not known here; known: {known}", short(&name))));
            }
            if Some(&*name) != several && pairs.iter().any(|(other, _)| *other == name) {
                return Err(Problem::bad(format!("query: {name} is given twice")));
            }
            pairs.push((name, value));
        }
        Ok(Self(pairs))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    pub(super) fn all<'q>(&'q self, name: &'q str) -> impl Iterator<Item = &'q str> {
        self.0.iter().filter(move |(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// Whether a switch is on: `?all`, `?all=true`.
    pub(super) fn is_on(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("" | "true") => Ok(true),
            Some(other) => Err(Problem::bad(format!("query: {name} is true or false, not {}", short(other)))),
        }
    }

    /// A length of time within bounds.
    pub(super) fn duration(&self, name: &str, least: Duration, most: Duration) -> Result<Option<Duration>, Problem> {
        self.get(name).map(|text| duration(name, text, least, most)).transpose()
    }

    /// A number.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Problem> {
        let number = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse()
                .ok()
                .filter(|_| is_number)
                .ok_or_else(|| Problem::bad(format!("query: {name} is a whole number from 0, not {}", short(text))))
        };
        self.get(name).map(number).transpose()
    }
}

/// Reads a length of time.
pub(super) fn duration(name: &str, text: &str, least: Duration, most: Duration) -> Result<Duration, Problem> {
    match pointsman_registry::parse_duration(text) {
        Ok(duration) if (least..=most).contains(&duration) => Ok(duration),
        Ok(_) => Err(Problem::bad(format!("{name} is {text}; it may be from {least:?} to {most:?}"))),
        Err(reason) => Err(Problem::bad(format!("{name}: {reason}"))),
    }
}

fn decoded(text: &str) -> Result<String, Problem> {
    // A form sends a space as a plus.
    percent::decode(text.replace('+', " ").as_bytes()).map_err(|error| Problem::bad(format!("query: {error}")))
}

/// What can be said of what somebody has sent.
pub(super) fn short(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

/// Reads a body as JSON.
pub(super) fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    let given = headers.get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or("?"));
    // Who says nothing means JSON; curl says that it sends a form.
    let is_json = given.is_none_or(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
    });
    if !is_json {
        let detail = format!("the body is {}; send application/json", short(given.unwrap_or_default()));
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    }
    if body.is_empty() {
        return Err(Problem::bad("the body is empty; send a JSON object"));
    }
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Problem::bad("the body is not a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| Problem::bad(format!("the body: {error}")))
}

/// A whole number, or none. `3.0` is one: to JSON Schema, and to languages that know no other numbers.
pub(super) fn whole<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64> + Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given<T> {
        Whole(T),
        Real(f64),
        Other(serde_json::Value),
    }
    match Option::<Given<T>>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Given::Whole(number)) => Ok(Some(number)),
        Some(Given::Real(number)) if (0.0..=MOST_EXACT).contains(&number) && number.fract() == 0.0 => {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and within bounds")]
            let whole = number as u64;
            let too_much = || de::Error::custom(format!("{whole} is more than a {}", std::any::type_name::<T>()));
            T::try_from(whole).map(Some).map_err(|_| too_much())
        }
        Some(Given::Real(number)) => Err(de::Error::custom(format!("{number} is no {}", std::any::type_name::<T>()))),
        Some(Given::Other(value)) => Err(de::Error::custom(format!("{value} is no {}", std::any::type_name::<T>()))),
    }
}

/// Up to this number every whole number has a form of its own as a double (2^53).
const MOST_EXACT: f64 = 9_007_199_254_740_992.0;

/// A map in which nothing stands twice.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Tags(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Tags;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object whose values are strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tags, A::Error> {
                let mut tags = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    if let Some(before) = tags.insert(name, value) {
                        return Err(de::Error::custom(format!("a tag is given twice, once as {}", short(&before))));
                    }
                }
                Ok(Tags(tags))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Query, Problem> {
        Query::read(&format!("/x?{text}").parse().unwrap(), &["key", "all", "n", "t", "service"], Some("service"))
    }

    #[test]
    fn queries() {
        let query = read("key=a%2Fb+c&all&n=7&t=2s&service=a&service=b").unwrap();
        assert_eq!(query.get("key"), Some("a/b c"));
        assert!(query.is_on("all").unwrap());
        assert_eq!(query.number("n").unwrap(), Some(7));
        assert_eq!(query.all("service").collect::<Vec<_>>(), ["a", "b"]);
        let second = Duration::from_secs(1);
        assert_eq!(query.duration("t", second, 9 * second).unwrap(), Some(2 * second));
        assert!(query.duration("t", second, second).is_err());
        for wrong in ["keys=1", "key=1&key=2", "key=%zz", "key=%f", "key=%ff"] {
            assert_eq!(read(wrong).unwrap_err().kind, Kind::BadRequest, "{wrong}");
        }
        for wrong in ["n=", "n=-1", "n=+1", "n=1.5", "n=99999999999999999999"] {
            assert!(read(wrong).unwrap().number("n").is_err(), "{wrong}");
        }
        assert!(read("all=maybe").unwrap().is_on("all").is_err());
    }

    #[test]
    fn bodies() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Thing {
            #[serde(default)]
            tags: Tags,
        }
        let parsed = |kind: Option<&str>, text: &str| {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert(CONTENT_TYPE, kind.parse().unwrap());
            }
            parse::<Thing>(&headers, text.as_bytes()).map(|thing| thing.tags.0).map_err(|problem| problem.kind)
        };
        assert_eq!(parsed(None, "{}"), Ok(BTreeMap::new()));
        assert_eq!(parsed(Some("application/json; charset=utf-8"), r#" {"tags":{"a":"b"}}"#).unwrap()["a"], "b");
        assert_eq!(parsed(Some("text/plain"), "{}"), Err(Kind::UnsupportedMediaType));
        for wrong in [
            "",
            "[]",
            "null",
            "{",
            "{}x",
            r#"{"tags":{"a":"b","a":"c"}}"#,
            r#"{"tags":{},"tags":{}}"#,
            r#"{"tag":{}}"#,
            r#"{"tags":{"a":1}}"#,
        ] {
            assert_eq!(parsed(None, wrong), Err(Kind::BadRequest), "{wrong}");
        }
    }
}
