//! Which route a request is for (pure).
//!
//! Routes are found by what they begin with: first by the host that they name, then by the literal beginning of their path. So of a
//! thousand routes only those few are tried that can match at all.

mod beginnings;
pub(crate) mod host;
mod pattern;

use std::collections::HashMap;

use regex::bytes::Regex;

use self::beginnings::{Beginnings, Collector};
use self::host::Host;
pub(crate) use self::pattern::{check_pattern, check_size};
use crate::settings::{Invalid, Route, When};

/// What is asked of a request.
pub(crate) trait Asked {
    /// The method, as it is written.
    fn method(&self) -> &[u8];
    /// The host as the client wrote it, with the port if there is one; may be empty.
    fn host(&self) -> &[u8];
    /// The path as it is, without the query.
    fn path(&self) -> &[u8];
    /// Whether `is` holds for one of the values of the field with this name, which is in lower case.
    fn any_header(&self, name: &str, is: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

/// All routes, prepared. A clone for each thread keeps threads from waiting for one another: expressions have scratch memory, which
/// clones do not share.
#[derive(Debug, Clone)]
pub(crate) struct Matcher {
    rules: Vec<Rule>,
    /// The routes of each name.
    exact: HashMap<Box<[u8]>, Beginnings>,
    /// The routes of all names below one: `.example.org`.
    below: HashMap<Box<[u8]>, Beginnings>,
    /// The most dots that a key of `below` has: what is longer is not looked for.
    dots: usize,
    /// The routes for whatever host.
    any: Beginnings,
}

/// What of a route is tried. The host is not: the index knows it.
#[derive(Debug, Clone)]
struct Rule {
    methods: Vec<Box<[u8]>>,
    prefix: Option<Box<[u8]>>,
    pattern: Option<Pattern>,
    headers: Vec<(Box<str>, Regex)>,
}

#[derive(Debug, Clone)]
enum Pattern {
    /// It matches exactly what begins with one of these.
    Beginnings(Vec<Vec<u8>>),
    Regex(Regex),
}

impl Matcher {
    /// Prepares the routes.
    ///
    /// # Errors
    ///
    /// The first expression or host that cannot be, or that all expressions together are too large.
    pub(crate) fn new(routes: &[Route]) -> Result<Self, Invalid> {
        let (mut exact, mut below) = (HashMap::<_, Collector>::new(), HashMap::<_, Collector>::new());
        let mut any = Collector::default();
        let mut rules = Vec::with_capacity(routes.len());
        for (index, Route { when, .. }) in routes.iter().enumerate() {
            let wrong = |key: &str, reason| Invalid { key: format!("route.{index}.{key}"), reason };
            let (rule, beginnings) = Rule::new(when, wrong)?;
            for host in &when.hosts {
                let host = Host::parse(host).map_err(|reason| wrong("host", reason))?;
                let routes = match host {
                    Host::Exact(name) => exact.entry(name).or_default(),
                    Host::Below(suffix) => below.entry(suffix).or_default(),
                };
                routes.add(&beginnings, rules.len());
            }
            if when.hosts.is_empty() {
                any.add(&beginnings, rules.len());
            }
            rules.push(rule);
        }
        check_size(routes)?;
        let finish = |map: HashMap<Box<[u8]>, Collector>| -> HashMap<_, _> {
            map.into_iter().map(|(key, collector)| (key, collector.finish())).collect()
        };
        let (exact, below) = (finish(exact), finish(below));
        let dots = below.keys().map(|suffix| memchr::memchr_iter(b'.', suffix).count()).max().unwrap_or(0);
        Ok(Self { rules, exact, below, dots, any: any.finish() })
    }

    /// The place of the first route that is for this request.
    pub(crate) fn find(&self, asked: &impl Asked) -> Option<usize> {
        let path = asked.path();
        let mut candidates = Candidates::new();
        self.any.each(path, |routes| candidates.add(routes));
        if !(self.exact.is_empty() && self.below.is_empty()) {
            let mut buffer = [0; host::LONGEST];
            let host = host::canonical(asked.host(), &mut buffer);
            if let Some(beginnings) = self.exact.get(host) {
                beginnings.each(path, |routes| candidates.add(routes));
            }
            // From the right: the shortest names first. What begins with a dot has nothing before it.
            for dot in memchr::memrchr_iter(b'.', host).take(self.dots).filter(|dot| *dot > 0) {
                if let Some(beginnings) = self.below.get(&host[dot..]) {
                    beginnings.each(path, |routes| candidates.add(routes));
                }
            }
        }
        while let Some(index) = candidates.next() {
            if self.rules[index].matches(asked, path) {
                return Some(index);
            }
        }
        None
    }
}

impl Rule {
    /// The rule, and what every path that it matches begins with, as one of several.
    fn new(when: &When, wrong: impl Fn(&str, String) -> Invalid) -> Result<(Self, Vec<Vec<u8>>), Invalid> {
        let prefix: Option<Box<[u8]>> = when.path_prefix.as_ref().map(|prefix| prefix.as_bytes().into());
        let (mut pattern, mut beginnings) = (None, vec![prefix.as_deref().unwrap_or_default().to_vec()]);
        if let Some(text) = &when.pattern {
            let regex = pattern::compile(text).map_err(|reason| wrong("match", reason))?;
            let literals = pattern::literals(text);
            pattern = Some(match &literals {
                Some(literals) if literals.are_all => Pattern::Beginnings(literals.texts.clone()),
                _ => Pattern::Regex(regex),
            });
            // Of the two ways to find it the one that leads to fewer.
            let shortest = |texts: &[Vec<u8>]| texts.iter().map(Vec::len).min();
            if let Some(literals) = literals.filter(|literals| shortest(&literals.texts) > shortest(&beginnings)) {
                beginnings = literals.texts;
            }
        }
        let headers = when.headers.iter().map(|(name, text)| {
            let regex = pattern::compile(text).map_err(|reason| wrong(&format!("header.{name}"), reason))?;
            Ok((name.as_str().into(), regex))
        });
        let headers = headers.collect::<Result<_, Invalid>>()?;
        let methods = when.methods.iter().map(|method| method.as_bytes().into()).collect();
        Ok((Self { methods, prefix, pattern, headers }, beginnings))
    }

    /// The cheapest comes first.
    fn matches(&self, asked: &impl Asked, path: &[u8]) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|method| **method == *asked.method()))
            && self.prefix.as_ref().is_none_or(|prefix| has_prefix(path, prefix))
            && self.pattern.as_ref().is_none_or(|pattern| pattern.matches(path))
            && self.headers.iter().all(|(name, regex)| asked.any_header(name, &mut |value| regex.is_match(value)))
    }
}

impl Pattern {
    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Pattern::Beginnings(texts) => texts.iter().any(|text| path.starts_with(text)),
            Pattern::Regex(regex) => regex.is_match(path),
        }
    }
}

/// Whether a path begins with a prefix that ends where a segment does.
pub(crate) fn has_prefix(path: &[u8], prefix: &[u8]) -> bool {
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| prefix.ends_with(b"/") || matches!(rest.first(), None | Some(b'/')))
}

/// How many lists of candidates have room without an allocation.
const LISTS: usize = 16;

/// The routes that are to be tried: some sorted lists, which are walked together.
struct Candidates<'m> {
    lists: [&'m [usize]; LISTS],
    len: usize,
    more: Vec<&'m [usize]>,
}

impl<'m> Candidates<'m> {
    const fn new() -> Self {
        Self { lists: [&[]; LISTS], len: 0, more: Vec::new() }
    }

    fn add(&mut self, list: &'m [usize]) {
        if let Some(place) = self.lists.get_mut(self.len) {
            *place = list;
            self.len += 1;
        } else {
            self.more.push(list);
        }
    }

    /// The smallest that has not been told yet.
    fn next(&mut self) -> Option<usize> {
        let lists = || self.lists[..self.len].iter().chain(&self.more);
        let smallest = lists().filter_map(|list| list.first().copied()).min()?;
        for list in self.lists[..self.len].iter_mut().chain(&mut self.more) {
            if let Some((first, rest)) = list.split_first()
                && *first == smallest
            {
                *list = rest;
            }
        }
        Some(smallest)
    }
}

#[cfg(test)]
mod tests;
