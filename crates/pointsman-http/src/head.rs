//! The head of a request or of an answer, whichever version of HTTP it came by: one buffer, and where in it what is.
//!
//! A head is kept and used again for the next request, so that in the steady state nothing is allocated for one.

use std::fmt;

/// A piece of a head's text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// Heads are limited to far less than 4 GiB.
    pub(crate) fn new(start: usize, len: usize) -> Self {
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { start: small(start), len: small(len) }
    }

    fn of(self, text: &[u8]) -> &[u8] {
        text.get(self.start as usize..(self.start + self.len) as usize).unwrap_or_default()
    }
}

macro_rules! names {
    ($($name:ident $text:literal)*) => {
        /// The fields that a proxy has to know, out of all.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Name {
            $($name,)*
            /// Any other.
            Other,
            /// One that `Connection` names: it is for this hop only.
            Listed,
            /// One that somebody behind might take for a field that this proxy sets: with `_` for `-`.
            Lookalike,
        }

        impl Name {
            /// Names are ASCII, whatever their case.
            pub(crate) fn of(name: &[u8]) -> Self {
                // The length and the first letter exclude nearly all.
                $(if name.len() == $text.len() && name[0] | 0x20 == $text.as_bytes()[0] && name.eq_ignore_ascii_case($text.as_bytes()) {
                    return Name::$name;
                })*
                if memchr::memchr(b'_', name).is_some() {
                    let hyphened: Vec<u8> = name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect();
                    if Name::of(&hyphened) != Name::Other {
                        return Name::Lookalike;
                    }
                }
                Name::Other
            }
        }
    };
}

names! {
    Te "te"
    Via "via"
    Host "host"
    Cookie "cookie"
    Expect "expect"
    Trailer "trailer"
    Upgrade "upgrade"
    Forwarded "forwarded"
    Connection "connection"
    KeepAlive "keep-alive"
    Tracestate "tracestate"
    Traceparent "traceparent"
    XRequestId "x-request-id"
    ContentLength "content-length"
    Http2Settings "http2-settings"
    XForwardedFor "x-forwarded-for"
    XForwardedHost "x-forwarded-host"
    ProxyConnection "proxy-connection"
    XForwardedProto "x-forwarded-proto"
    TransferEncoding "transfer-encoding"
    ProxyAuthenticate "proxy-authenticate"
    ProxyAuthorization "proxy-authorization"
}

#[derive(Debug, Clone, Copy)]
struct Field {
    what: Name,
    name: Span,
    value: Span,
}

/// The fields of a head, or trailers.
#[derive(Clone, Default)]
pub(crate) struct Fields {
    text: Vec<u8>,
    fields: Vec<Field>,
}

impl Fields {
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
    }

    /// Adds text that spans can point into; what is returned is where it begins.
    pub(crate) fn add_text(&mut self, text: &[u8]) -> usize {
        let start = self.text.len();
        self.text.extend_from_slice(text);
        start
    }

    pub(crate) fn push_spans(&mut self, what: Name, name: Span, value: Span) {
        self.fields.push(Field { what, name, value });
    }

    pub(crate) fn push(&mut self, name: &[u8], value: &[u8]) -> Name {
        let what = Name::of(name);
        let at = self.add_text(name);
        let name = Span::new(at, name.len());
        let at = self.add_text(value);
        self.push_spans(what, name, Span::new(at, value.len()));
        what
    }

    /// Where a piece of the text is; it must be one.
    pub(crate) fn span_of(&self, piece: &[u8]) -> Span {
        Span::new(piece.as_ptr() as usize - self.text.as_ptr() as usize, piece.len())
    }

    pub(crate) fn text(&self, span: Span) -> &[u8] {
        span.of(&self.text)
    }

    /// In their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Name, &[u8], &[u8])> {
        self.fields.iter().map(|field| (field.what, field.name.of(&self.text), field.value.of(&self.text)))
    }

    /// All values of one that is known.
    pub(crate) fn all(&self, what: Name) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |field| field.what == what).map(|field| field.value.of(&self.text))
    }

    /// The first value of one that is known.
    pub(crate) fn get(&self, what: Name) -> Option<&[u8]> {
        self.all(what).next()
    }

    /// All values of one, by its name in lower case.
    pub(crate) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let is_it = move |field: &&Field| field.name.of(&self.text).eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(is_it).map(|field| field.value.of(&self.text))
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.fields.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Marks what `Connection` names. What decides where a message ends, and what the proxy itself says, cannot be named away.
    pub(crate) fn mark_listed(&mut self) {
        let listed: Vec<Vec<u8>> = self
            .all(Name::Connection)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(|token| token.trim_ascii().to_ascii_lowercase())
            .collect();
        for field in &mut self.fields {
            let name = field.name.of(&self.text);
            if matches!(field.what, Name::Other | Name::Cookie)
                && listed.iter().any(|other| name.eq_ignore_ascii_case(other))
            {
                field.what = Name::Listed;
            }
        }
    }

    /// Returns memory that an unusually large head has taken.
    pub(crate) fn shrink(&mut self) {
        const LARGE: usize = 4 << 10;
        self.clear();
        self.text.shrink_to(LARGE);
        self.fields.shrink_to(64);
    }
}

impl fmt::Debug for Fields {
    /// Only the names: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(_, name, _)| String::from_utf8_lossy(name))).finish()
    }
}

/// What a request's method is, as far as a proxy has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Verb {
    #[default]
    Get,
    Head,
    /// Another that does no harm when it is done twice: PUT, DELETE, OPTIONS.
    Idempotent,
    Connect,
    Trace,
    /// POST, PATCH, and what is not known.
    Other,
}

impl Verb {
    pub(crate) fn of(method: &[u8]) -> Self {
        match method {
            b"GET" => Verb::Get,
            b"HEAD" => Verb::Head,
            b"PUT" | b"DELETE" | b"OPTIONS" => Verb::Idempotent,
            b"CONNECT" => Verb::Connect,
            b"TRACE" => Verb::Trace,
            _ => Verb::Other,
        }
    }

    /// Whether it may be sent again after it has been sent (RFC 9110, 9.2.2).
    pub(crate) fn is_idempotent(self) -> bool {
        matches!(self, Verb::Get | Verb::Head | Verb::Idempotent)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Version {
    Http10,
    #[default]
    Http11,
    Http2,
}

impl Version {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2.0",
        }
    }
}

/// How it is known where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Framing {
    /// There is none.
    #[default]
    Empty,
    /// After so many bytes.
    Length(u64),
    /// By itself: chunked, or by HTTP/2's frames.
    Chunked,
    /// By the connection's end; only answers of HTTP/1.
    UntilClose,
}

/// The head of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestHead {
    pub(crate) fields: Fields,
    pub(crate) method: Span,
    /// In origin form, or `*`.
    pub(crate) target: Span,
    /// What the client calls the host, port included.
    pub(crate) host: Span,
    pub(crate) verb: Verb,
    pub(crate) version: Version,
    pub(crate) framing: Framing,
    /// The client wants the connection to end after this.
    pub(crate) close: bool,
    /// The client of HTTP/1.0 wants it to go on.
    pub(crate) keep_alive: bool,
    /// The protocol that the client wants to go over to.
    pub(crate) upgrade: Option<Span>,
    /// The client waits to be told to send the body.
    pub(crate) expects_continue: bool,
    /// The client understands trailers (`TE: trailers`).
    pub(crate) takes_trailers: bool,
}

impl RequestHead {
    pub(crate) fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self { fields, ..Self::default() };
    }

    pub(crate) fn method(&self) -> &[u8] {
        self.fields.text(self.method)
    }

    pub(crate) fn target(&self) -> &[u8] {
        self.fields.text(self.target)
    }

    /// The target without its query.
    pub(crate) fn path(&self) -> &[u8] {
        let target = self.target();
        memchr::memchr(b'?', target).map_or(target, |end| &target[..end])
    }

    pub(crate) fn host(&self) -> &[u8] {
        self.fields.text(self.host)
    }

    /// The value of a cookie.
    pub(crate) fn cookie<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        let pairs = self.fields.all(Name::Cookie).flat_map(|value| value.split(|byte| *byte == b';'));
        let mut values = pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        values.next()
    }
}

/// The head of an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct ResponseHead {
    pub(crate) fields: Fields,
    pub(crate) status: u16,
    /// Only HTTP/1 has one.
    pub(crate) reason: Span,
    pub(crate) version: Version,
    pub(crate) framing: Framing,
    /// The length that is told, though there is no body: an answer to HEAD, or 304.
    pub(crate) told_length: Option<u64>,
    /// The instance ends the connection after this.
    pub(crate) close: bool,
    /// For how many seconds the instance says that it keeps an idle connection.
    pub(crate) kept_for: Option<u32>,
}

impl ResponseHead {
    pub(crate) fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self { fields, ..Self::default() };
    }

    pub(crate) fn reason(&self) -> &[u8] {
        self.fields.text(self.reason)
    }

    pub(crate) fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_whatever_their_case() {
        for (name, what) in [
            ("Host", Name::Host),
            ("HOST", Name::Host),
            ("x-forwarded-for", Name::XForwardedFor),
            ("X-Forwarded-Host", Name::XForwardedHost),
            ("Transfer-encoding", Name::TransferEncoding),
            ("X_Forwarded_For", Name::Lookalike),
            ("transfer_encoding", Name::Lookalike),
            ("x-real_ip", Name::Other),
            ("accept", Name::Other),
            ("hose", Name::Other),
        ] {
            assert_eq!(Name::of(name.as_bytes()), what, "{name}");
        }
    }

    #[test]
    fn what_connection_names_is_for_this_hop_but_not_what_frames_a_message() {
        let mut fields = Fields::default();
        for (name, value) in [("Connection", "close, X-Secret , content-length,host"), ("x-secret", "1")] {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        fields.push(b"Content-Length", b"3");
        fields.push(b"Host", b"h");
        fields.mark_listed();
        let whats: Vec<Name> = fields.iter().map(|(what, ..)| what).collect();
        assert_eq!(whats, [Name::Connection, Name::Listed, Name::ContentLength, Name::Host]);
    }

    #[test]
    fn cookies_are_found_by_name() {
        let mut head = RequestHead::default();
        head.fields.push(b"cookie", b"a=1; bb=2 ;b=3");
        head.fields.push(b"cookie", b"c==4");
        let value = |name| head.cookie(name).map(|value| String::from_utf8_lossy(value).into_owned());
        assert_eq!(
            ["a", "b", "bb", "c", "d"].map(value),
            ["1", "3", "2", "=4", ""].map(|v| Some(v.to_owned()).filter(|v| !v.is_empty()))
        );
    }
}
