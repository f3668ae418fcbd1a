//! Which fields go on to the next hop, and which are made here (RFC 9110, 7.6; RFC 7239; W3C Trace Context).

use std::net::IpAddr;

use crate::head::{Fields, Framing, Name, RequestHead, ResponseHead, Version};
use crate::settings::{Forwarded, Network};

/// What this proxy is called in `Via`.
pub(crate) const PSEUDONYM: &str = "pointsman";
/// A request that has been through proxies of ours so often goes round in circles.
const MOST_HOPS: usize = 10;
/// The longest request id that is taken over.
const LONGEST_ID: usize = 128;

/// Who is at the other end of a client's connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// The address as text, written once a connection.
    pub(crate) text: String,
    /// The same as `Forwarded` has it.
    pub(crate) node: String,
    /// Whether the connection is TLS.
    pub(crate) secure: bool,
}

impl Peer {
    pub(crate) fn new(address: IpAddr, secure: bool) -> Self {
        let address = address.to_canonical();
        let text = address.to_string();
        let node = if address.is_ipv6() { format!("\"[{text}]\"") } else { text.clone() };
        Self { address, text, node, secure }
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// What is said of where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hop<'a> {
    pub(crate) peer: &'a Peer,
    /// Whether what the peer says of earlier hops is believed.
    pub(crate) trusted: bool,
    pub(crate) forwarded: Forwarded,
    pub(crate) ids: &'a Ids,
}

/// What a request is called in logs, here and behind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ids {
    /// Made here, if the client has none that will do.
    request: Option<[u8; 32]>,
    trace: Option<[u8; 55]>,
}

impl Ids {
    pub(crate) fn of(head: &RequestHead) -> Self {
        let request = head.fields.get(Name::XRequestId).is_none_or(|id| !is_id(id));
        // More than one is none (Trace Context, 3.2.2.5).
        let mut parents = head.fields.all(Name::Traceparent);
        let trace = !parents.next().is_some_and(is_traceparent) || parents.next().is_some();
        Self { request: request.then(random_id), trace: trace.then(random_trace) }
    }

    /// The request's id.
    pub(crate) fn request<'a>(&'a self, head: &'a RequestHead) -> &'a [u8] {
        match &self.request {
            Some(id) => id,
            None => head.fields.get(Name::XRequestId).unwrap_or_default(),
        }
    }
}

fn is_id(id: &[u8]) -> bool {
    (1..=LONGEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// Version, trace, parent, flags.
fn is_traceparent(parent: &[u8]) -> bool {
    let is_hex = |piece: &[u8]| piece.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let says = |piece: &[u8]| is_hex(piece) && piece.iter().any(|byte| *byte != b'0');
    let (Some(first), rest) = (parent.get(..55), parent.get(55..).unwrap_or_default()) else { return false };
    let version = &first[..2];
    let hyphens = [2, 35, 52].iter().all(|at| first[*at] == b'-');
    let known_end = rest.is_empty() || (version != b"00" && rest[0] == b'-');
    hyphens
        && is_hex(version)
        && version != b"ff"
        && says(&first[3..35])
        && says(&first[36..52])
        && is_hex(&first[53..])
        && known_end
}

fn hex(number: u128, digits: &mut [u8]) {
    let last = digits.len() - 1;
    for (at, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> ((last - at) * 4)) as usize & 15];
    }
}

fn random_id() -> [u8; 32] {
    let mut id = [0; 32];
    hex(fastrand::u128(..), &mut id);
    id
}

/// Not sampled: whether to record is for those behind to decide.
fn random_trace() -> [u8; 55] {
    let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
    hex(fastrand::u128(1..), &mut parent[3..35]);
    hex(fastrand::u64(1..).into(), &mut parent[36..52]);
    parent
}

/// Whether the request has been here too often.
pub(crate) fn goes_in_circles(head: &RequestHead) -> bool {
    let hops = head.fields.all(Name::Via).flat_map(|value| value.split(|byte| *byte == b','));
    hops.filter(|hop| hop.trim_ascii().ends_with(PSEUDONYM.as_bytes())).count() >= MOST_HOPS
}

/// The address that a request comes from, as far back as hops are trusted.
pub(crate) fn client_address(head: &RequestHead, peer: &Peer, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut address = peer.address;
    if trusted.is_empty() || !is_trusted(address) {
        return address;
    }
    // The last is the nearest.
    let values: Vec<&[u8]> = head.fields.all(Name::XForwardedFor).collect();
    let hops = values.iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    let mut hops: Vec<Option<IpAddr>> = hops.map(parse_address).collect();
    if hops.is_empty() {
        let values: Vec<&[u8]> = head.fields.all(Name::Forwarded).collect();
        let elements = values.iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
        hops = elements.map(|element| parse_address(forwarded_for(element)?)).collect();
    }
    for hop in hops {
        let Some(hop) = hop else { break };
        address = hop;
        if !is_trusted(hop) {
            break;
        }
    }
    address
}

fn forwarded_for(element: &[u8]) -> Option<&[u8]> {
    let mut pairs = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    pairs.find_map(|pair| pair.get(..4).filter(|name| name.eq_ignore_ascii_case(b"for=")).map(|_| &pair[4..]))
}

/// With or without port, brackets, quotes.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim().trim_matches('"');
    let parse = |text: &str| text.parse::<IpAddr>().ok();
    let in_brackets = || text.strip_prefix('[')?.split_once(']').map(|(address, _)| address);
    let address = parse(text).or_else(|| parse(in_brackets()?)).or_else(|| parse(text.split_once(':')?.0));
    address.map(|address| address.to_canonical())
}

/// Gives each field that goes on to the instance, but for what frames the message.
pub(crate) fn request(head: &RequestHead, hop: Hop<'_>, emit: &mut impl FnMut(&[u8], &[u8])) {
    let x_forwarded = matches!(hop.forwarded, Forwarded::XForwarded | Forwarded::Both);
    let rfc7239 = matches!(hop.forwarded, Forwarded::Rfc7239 | Forwarded::Both);
    let own_trace = hop.ids.trace.is_some();
    let (mut via, mut told_host, mut told_scheme) = (false, false, false);
    for (what, name, value) in head.fields.iter() {
        match what {
            Name::Other | Name::Cookie => emit(name, value),
            Name::Tracestate if !own_trace => emit(name, value),
            Name::Traceparent if !own_trace => emit(name, value),
            Name::XRequestId if hop.ids.request.is_none() => emit(name, value),
            Name::XForwardedHost if hop.trusted && x_forwarded && !told_host => {
                told_host = true;
                emit(name, value);
            }
            Name::XForwardedProto if hop.trusted && x_forwarded && !told_scheme => {
                told_scheme = true;
                emit(name, value);
            }
            Name::Via => via = true,
            _ => {}
        }
    }
    let peer = hop.peer;
    if x_forwarded {
        let earlier = joined(&head.fields, Name::XForwardedFor, hop.trusted);
        with_appended(earlier, peer.text.as_bytes(), &mut |value| emit(b"x-forwarded-for", value));
        if !told_scheme {
            emit(b"x-forwarded-proto", peer.scheme().as_bytes());
        }
        if !told_host && !head.host().is_empty() {
            emit(b"x-forwarded-host", head.host());
        }
    }
    if rfc7239 {
        let host = String::from_utf8_lossy(head.host());
        let own = format!("for={};proto={};host=\"{host}\"", peer.node, peer.scheme());
        let earlier = joined(&head.fields, Name::Forwarded, hop.trusted);
        with_appended(earlier, own.as_bytes(), &mut |value| emit(b"forwarded", value));
    }
    let own_via: &[u8] = match head.version {
        Version::Http10 => b"1.0 pointsman",
        Version::Http11 => b"1.1 pointsman",
        Version::Http2 => b"2 pointsman",
    };
    with_appended(joined(&head.fields, Name::Via, via), own_via, &mut |value| emit(b"via", value));
    if let Some(id) = &hop.ids.request {
        emit(b"x-request-id", id);
    }
    if let Some(trace) = &hop.ids.trace {
        emit(b"traceparent", trace);
    }
}

/// All values of a field as one; `None` where there are none, or nothing is believed.
fn joined(fields: &Fields, what: Name, wanted: bool) -> Option<Vec<u8>> {
    if !wanted {
        return None;
    }
    let mut values = fields.all(what).filter(|value| !value.is_empty());
    let mut all = values.next()?.to_vec();
    for value in values {
        all.extend_from_slice(b", ");
        all.extend_from_slice(value);
    }
    Some(all)
}

fn with_appended(earlier: Option<Vec<u8>>, own: &[u8], emit: &mut dyn FnMut(&[u8])) {
    match earlier {
        None => emit(own),
        Some(mut all) => {
            all.extend_from_slice(b", ");
            all.extend_from_slice(own);
            emit(&all);
        }
    }
}

/// Gives each field that goes back to the client, but for what frames the message. The request's id is told in any case.
pub(crate) fn response(head: &ResponseHead, id: Option<&[u8]>, emit: &mut impl FnMut(&[u8], &[u8])) {
    let mut via = false;
    for (what, name, value) in head.fields.iter() {
        match what {
            Name::Via => via = true,
            Name::XRequestId if id.is_some() => {}
            // What HTTP/1.1 can go over to is for whoever was told that it must.
            Name::Upgrade if head.status == 426 => emit(name, value),
            Name::Other
            | Name::Cookie
            | Name::Host
            | Name::Expect
            | Name::XRequestId
            | Name::Traceparent
            | Name::Tracestate
            | Name::Forwarded
            | Name::XForwardedFor
            | Name::XForwardedHost
            | Name::XForwardedProto => emit(name, value),
            _ => {}
        }
    }
    let own_via: &[u8] = match head.version {
        Version::Http10 => b"1.0 pointsman",
        Version::Http11 => b"1.1 pointsman",
        Version::Http2 => b"2 pointsman",
    };
    with_appended(joined(&head.fields, Name::Via, via), own_via, &mut |value| emit(b"via", value));
    if let Some(id) = id {
        emit(b"x-request-id", id);
    }
}

/// Whether a body follows whose end the client's version of HTTP/1 cannot tell but by the connection's.
pub(crate) fn ends_with_connection(client: Version, framing: Framing) -> bool {
    client == Version::Http10 && matches!(framing, Framing::Chunked | Framing::UntilClose)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::parse::{self, Bounds};

    fn head(lines: &str) -> RequestHead {
        let mut head = RequestHead::default();
        let text = format!("GET /p?q HTTP/1.1\r\nHost: h:1\r\n{lines}\r\n");
        parse::request(text.as_bytes(), &mut head, Bounds { bytes: 9999, fields: 99 }).unwrap().unwrap();
        head
    }

    fn sent(head: &RequestHead, trusted: bool, forwarded: Forwarded) -> Vec<String> {
        let (peer, ids) = (Peer::new("10.0.0.9".parse().unwrap(), true), Ids::of(head));
        let mut lines = Vec::new();
        let hop = Hop { peer: &peer, trusted, forwarded, ids: &ids };
        request(head, hop, &mut |name, value| {
            lines.push(
                format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)).to_ascii_lowercase(),
            );
        });
        lines
    }

    const IDS: &str = "X-Request-Id: r-1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=1\r\n";

    #[test]
    fn what_is_for_this_hop_stays_here() {
        let head = head(&format!(
            "Connection: x-hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\nProxy-Authorization: s\r\nAccept: */*\r\n{IDS}"
        ));
        let sent = sent(&head, false, Forwarded::Off);
        let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(sent, ["accept: */*", "x-request-id: r-1", trace, "tracestate: a=1", "via: 1.1 pointsman"]);
    }

    #[test]
    fn earlier_hops_are_believed_only_if_the_peer_is() {
        let earlier = "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: x\r\nForwarded: for=1.2.3.4\r\nVia: 1.0 a\r\nX_Forwarded_For: 6.6.6.6\r\n";
        let head = head(&format!("{earlier}{IDS}"));
        let mine = |lines: Vec<String>| {
            lines.into_iter().filter(|line| line.contains("forwarded") || line.contains("via")).collect::<Vec<_>>()
        };
        assert_eq!(
            mine(sent(&head, false, Forwarded::Both)),
            [
                "x-forwarded-for: 10.0.0.9",
                "x-forwarded-proto: https",
                "x-forwarded-host: h:1",
                "forwarded: for=10.0.0.9;proto=https;host=\"h:1\"",
                "via: 1.0 a, 1.1 pointsman",
            ]
        );
        assert_eq!(
            mine(sent(&head, true, Forwarded::Both)),
            [
                "x-forwarded-proto: gopher",
                "x-forwarded-host: x",
                "x-forwarded-for: 1.2.3.4, 10.0.0.9",
                "forwarded: for=1.2.3.4, for=10.0.0.9;proto=https;host=\"h:1\"",
                "via: 1.0 a, 1.1 pointsman",
            ]
        );
    }

    #[test]
    fn ids_that_will_not_do_are_made_anew() {
        for lines in [
            "",
            "X-Request-Id: a b\r\ntraceparent: 00-00000000000000000000000000000000-b7ad6b7169203331-01\r\ntracestate: a=1\r\n",
        ] {
            let sent = sent(&head(lines), false, Forwarded::Off);
            let value =
                |name: &str| sent.iter().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
            assert_eq!(value("x-request-id: ").len(), 32, "{sent:?}");
            assert!(is_traceparent(value("traceparent: ").as_bytes()), "{sent:?}");
            assert_eq!(value("tracestate"), "", "of another trace");
        }
        assert!(!is_traceparent(b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        assert!(!is_traceparent(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"));
        assert!(is_traceparent(b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"));
    }

    #[test]
    fn the_client_is_who_the_last_trusted_hop_says() {
        let trusted: Vec<Network> = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap()).into();
        for (lines, expected) in [
            ("", "10.0.0.9"),
            ("X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.0.0.1\r\n", "1.2.3.4"),
            ("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 1.2.3.4:80\r\n", "1.2.3.4"),
            ("X-Forwarded-For: 10.1.1.1, 10.0.0.1\r\n", "10.1.1.1"),
            ("X-Forwarded-For: 6.6.6.6, nonsense, 10.0.0.1\r\n", "10.0.0.1"),
            ("Forwarded: for=1.2.3.4;proto=http, for=\"[fd00::1]:80\"\r\n", "1.2.3.4"),
        ] {
            let peer = Peer::new("10.0.0.9".parse().unwrap(), false);
            assert_eq!(client_address(&head(lines), &peer, &trusted).to_string(), expected, "{lines}");
            let stranger = Peer::new("11.0.0.9".parse().unwrap(), false);
            assert_eq!(client_address(&head(lines), &stranger, &trusted).to_string(), "11.0.0.9", "{lines}");
        }
    }

    #[test]
    fn circles_are_noticed() {
        assert!(!goes_in_circles(&head("Via: 1.1 pointsman, 1.1 a\r\n")));
        let hops = ["1.1 pointsman"; MOST_HOPS].join(", ");
        assert!(goes_in_circles(&head(&format!("Via: {hops}\r\n"))));
    }
}
