//! From bytes to heads, strictly: what two parsers could read differently is refused (RFC 9112, 11.2).

use std::mem::MaybeUninit;

use crate::head::{Fields, Framing, Name, RequestHead, ResponseHead, Span, Verb, Version};
use crate::problem::{Kind, Problem};

/// The most fields that can be asked for.
pub(crate) const MOST_FIELDS: usize = 256;

/// What a head may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    pub(crate) fields: usize,
}

/// Reads the head of a request; `None`: there is more to come. What is returned is the head's length.
pub(crate) fn request(bytes: &[u8], head: &mut RequestHead, bounds: Bounds) -> Result<Option<usize>, Problem> {
    // An empty line before the request is allowed (RFC 9112, 2.2); old clients send one after a body.
    let skipped = bytes.iter().take(4).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if !b"\r\n\r\n".starts_with(&bytes[..skipped]) {
        return Err(Problem::bad("a line before the request ends with LF alone"));
    }
    if skipped % 2 == 1 {
        return if bytes.len() == skipped { Ok(None) } else { Err(Problem::bad("CR without LF before the request")) };
    }
    let bytes = &bytes[skipped..];
    let mut fields = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MOST_FIELDS];
    let fields = &mut fields[..bounds.fields.min(MOST_FIELDS)];
    let mut parsed = httparse::Request::new(&mut []);
    let len = match parsed.parse_with_uninit_headers(bytes, fields) {
        Ok(httparse::Status::Complete(len)) if len <= bounds.bytes => len,
        Ok(httparse::Status::Partial) if bytes.len() < bounds.bytes => return Ok(None),
        Ok(_) => return Err(too_large(bytes, bounds)),
        Err(error) => return Err(refused(error)),
    };
    check_lines(&bytes[..len]).map_err(Problem::bad)?;
    head.clear();
    let base = bytes.as_ptr() as usize;
    head.fields.add_text(&bytes[..len]);
    let span = |piece: &[u8]| Span::new(piece.as_ptr() as usize - base, piece.len());
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    (head.method, head.target) = (span(method.as_bytes()), span(target.as_bytes()));
    head.verb = Verb::of(method.as_bytes());
    head.version = if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 };
    for field in &*parsed.headers {
        head.fields.push_spans(Name::of(field.name.as_bytes()), span(field.name.as_bytes()), span(field.value));
    }
    understand(head)?;
    Ok(Some(skipped + len))
}

/// What the fields of a request mean, and whether they contradict one another; for both versions.
pub(crate) fn understand(head: &mut RequestHead) -> Result<(), Problem> {
    let fields = std::mem::take(&mut head.fields);
    let meaning = meaning(&fields, head);
    head.fields = fields;
    let (host, others_listed) = meaning?;
    if others_listed {
        head.fields.mark_listed();
    }
    target(head, host)
}

/// Host, and whether `Connection` names fields.
fn meaning(fields: &Fields, head: &mut RequestHead) -> Result<(Option<Span>, bool), Problem> {
    let (mut length, mut coding, mut host, mut others_listed) = (None, None, None, false);
    let (mut wants_upgrade, mut upgrade) = (false, None);
    for (what, _, value) in fields.iter() {
        match what {
            Name::Host if host.replace(value).is_some() => return Err(Problem::bad("more than one Host")),
            Name::ContentLength if length.replace(value).is_some() => {
                return Err(Problem::bad("more than one Content-Length"));
            }
            Name::TransferEncoding if coding.replace(value).is_some() => {
                return Err(Problem::bad("more than one Transfer-Encoding"));
            }
            Name::Connection => {
                for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    if token.eq_ignore_ascii_case(b"close") {
                        head.close = true;
                    } else if token.eq_ignore_ascii_case(b"keep-alive") {
                        head.keep_alive = true;
                    } else if token.eq_ignore_ascii_case(b"upgrade") {
                        wants_upgrade = true;
                    } else if !token.is_empty() {
                        others_listed = true;
                    }
                }
            }
            Name::Upgrade => upgrade = upgrade.or(Some(value)),
            Name::Expect if value.eq_ignore_ascii_case(b"100-continue") => {
                // Whoever speaks HTTP/1.0 does not wait for it (RFC 9110, 10.1.1).
                head.expects_continue = head.version != Version::Http10;
            }
            Name::Expect => return Err(Problem::new(Kind::ExpectationFailed, "only 100-continue is known in Expect")),
            Name::Te => {
                let mut tokens = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                head.takes_trailers |= tokens.any(|token| token.eq_ignore_ascii_case(b"trailers"));
            }
            _ => {}
        }
    }
    head.framing = framing(head.version, length, coding)?;
    let upgrade = upgrade.filter(|_| wants_upgrade && head.version == Version::Http11);
    // HTTP/2 is not gone over to from within HTTP/1.1: a proxy in between could not follow.
    let is_http2 = |value: &[u8]| {
        value
            .split(|byte| *byte == b',')
            .any(|token| token.trim_ascii().get(..2).is_some_and(|h2| h2.eq_ignore_ascii_case(b"h2")))
    };
    let upgrade = upgrade.filter(|value| !is_http2(value));
    // A body before the other protocol begins would leave open where it ends.
    head.upgrade = upgrade.filter(|_| head.framing == Framing::Empty).map(|value| fields.span_of(value));
    Ok((host.map(|host| fields.span_of(host)), others_listed))
}

fn framing(version: Version, length: Option<&[u8]>, coding: Option<&[u8]>) -> Result<Framing, Problem> {
    match (length, coding) {
        (Some(_), Some(_)) => Err(Problem::bad("both Content-Length and Transfer-Encoding")),
        (None, Some(_)) if version != Version::Http11 => Err(Problem::bad("Transfer-Encoding is of HTTP/1.1 only")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (None, Some(coding)) => {
            let mut tokens = coding.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            let known: [&[u8]; 3] = [b"gzip", b"deflate", b"compress"];
            if tokens.any(|token| known.iter().any(|known| token.eq_ignore_ascii_case(known))) {
                return Err(Problem::new(Kind::NotImplemented, "of the transfer codings only chunked is understood"));
            }
            Err(Problem::bad("Transfer-Encoding must be chunked"))
        }
        (Some(length), None) => match content_length(length) {
            None => Err(Problem::bad("Content-Length is no number of bytes")),
            Some(0) => Ok(Framing::Empty),
            Some(length) => Ok(Framing::Length(length)),
        },
        (None, None) if version == Version::Http2 => Ok(Framing::Chunked),
        (None, None) => Ok(Framing::Empty),
    }
}

/// Digits and nothing else.
pub(crate) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Brings the target into origin form, and finds out what the client calls the host.
fn target(head: &mut RequestHead, host: Option<Span>) -> Result<(), Problem> {
    let target = head.fields.text(head.target);
    if memchr::memchr(b'#', target).is_some() {
        return Err(Problem::bad("the target has a fragment"));
    }
    if head.verb == Verb::Connect {
        return Err(Problem::new(Kind::MethodNotAllowed, "CONNECT is for forward proxies"));
    }
    if head.verb == Verb::Trace {
        return Err(Problem::new(Kind::MethodNotAllowed, "TRACE is not passed on"));
    }
    let named = host.map(|host| head.fields.text(host));
    if named.is_none() && head.version != Version::Http10 {
        return Err(Problem::bad("Host is missing"));
    }
    if named.is_some_and(|host| !is_authority(host)) {
        return Err(Problem::bad("Host is no name"));
    }
    if target.starts_with(b"/") || (target == b"*" && head.method() == b"OPTIONS") {
        head.host = host.unwrap_or_default();
        return Ok(());
    }
    // Absolute form: what a client sends to a forward proxy. Who calls the host by two names wants one of us to be wrong.
    let Some(end) = target.windows(3).take(8).position(|three| three == b"://") else {
        return Err(Problem::bad("the target is no path"));
    };
    if !target[..end].eq_ignore_ascii_case(b"http") && !target[..end].eq_ignore_ascii_case(b"https") {
        return Err(Problem::bad("the target's scheme is neither http nor https"));
    }
    let rest = &target[end + 3..];
    let authority = &rest[..rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len())];
    if authority.is_empty() || !is_authority(authority) {
        return Err(Problem::bad("the target's authority is no name"));
    }
    if named.is_some_and(|host| !host.eq_ignore_ascii_case(authority)) {
        return Err(Problem::bad("the target and Host name different hosts"));
    }
    let path = &rest[authority.len()..];
    let (host, path) = (head.fields.span_of(authority), head.fields.span_of(path));
    head.host = host;
    head.target = path;
    if !head.target().starts_with(b"/") {
        // `http://host` and `http://host?q`: the path is empty, and is sent as `/`.
        let path = [b"/", head.target()].concat();
        let at = head.fields.add_text(&path);
        head.target = Span::new(at, path.len());
    }
    Ok(())
}

/// A name or an address, and a port or none (RFC 3986, 3.2); no user. May be empty.
fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = match authority.split_first() {
        Some((b'[', rest)) => match memchr::memchr(b']', rest) {
            Some(end) => {
                let address = std::str::from_utf8(&rest[..end]).ok();
                if address.is_none_or(|address| address.parse::<std::net::Ipv6Addr>().is_err()) {
                    return false;
                }
                (&b""[..], &rest[end + 1..])
            }
            None => return false,
        },
        _ => authority.split_at(memchr::memchr(b':', authority).unwrap_or(authority.len())),
    };
    let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte) || *byte >= 0x80;
    let is_port = match port.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    host.iter().all(is_of_name) && is_port
}

/// Reads the head of an answer; `None`: there is more to come. What is returned is the head's length. `to_head` says that the
/// request was HEAD.
pub(crate) fn response(
    bytes: &[u8],
    head: &mut ResponseHead,
    bounds: Bounds,
    to_head: bool,
) -> Result<Option<usize>, &'static str> {
    let mut fields = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MOST_FIELDS];
    let fields = &mut fields[..bounds.fields.min(MOST_FIELDS)];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let len = match config.parse_response_with_uninit_headers(&mut parsed, bytes, fields) {
        Ok(httparse::Status::Complete(len)) if len <= bounds.bytes => len,
        Ok(httparse::Status::Partial) if bytes.len() < bounds.bytes => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err("its head is too large"),
        Err(_) => return Err("its head is not HTTP/1"),
    };
    check_lines(&bytes[..len])?;
    head.clear();
    let base = bytes.as_ptr() as usize;
    head.fields.add_text(&bytes[..len]);
    let span = |piece: &[u8]| Span::new(piece.as_ptr() as usize - base, piece.len());
    head.status = parsed.code.unwrap_or_default();
    // The parser gives an empty one that is none of the text, if it is not plain.
    head.reason =
        parsed.reason.filter(|reason| !reason.is_empty()).map(|reason| span(reason.as_bytes())).unwrap_or_default();
    head.version = if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 };
    for field in &*parsed.headers {
        head.fields.push_spans(Name::of(field.name.as_bytes()), span(field.name.as_bytes()), span(field.value));
    }
    if !(100..=599).contains(&head.status) {
        return Err("its status is none of HTTP's");
    }
    understand_response(head, to_head)?;
    Ok(Some(len))
}

fn understand_response(head: &mut ResponseHead, to_head: bool) -> Result<(), &'static str> {
    let (mut length, mut coding, mut listed) = (None, None, false);
    let (mut close, mut keep_alive, mut kept_for) = (false, false, None);
    for (what, _, value) in head.fields.iter() {
        match what {
            Name::ContentLength => {
                let new = content_length(value).ok_or("its Content-Length is no number of bytes")?;
                if length.replace(new).is_some_and(|old| old != new) {
                    return Err("it has two lengths");
                }
            }
            Name::TransferEncoding if coding.replace(value).is_some() || !value.eq_ignore_ascii_case(b"chunked") => {
                return Err("its Transfer-Encoding is not chunked");
            }
            Name::Connection => {
                for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    if token.eq_ignore_ascii_case(b"close") {
                        close = true;
                    } else if token.eq_ignore_ascii_case(b"keep-alive") {
                        keep_alive = true;
                    } else if !token.is_empty() && !token.eq_ignore_ascii_case(b"upgrade") {
                        listed = true;
                    }
                }
            }
            Name::KeepAlive => {
                let value = value.to_ascii_lowercase();
                let mut parts =
                    value.split(|byte| *byte == b',').filter_map(|part| part.trim_ascii().strip_prefix(b"timeout="));
                kept_for = parts.next().and_then(|seconds| std::str::from_utf8(seconds).ok()?.parse().ok());
            }
            _ => {}
        }
    }
    if coding.is_some() && (length.is_some() || head.version == Version::Http10) {
        return Err("both Content-Length and Transfer-Encoding say where it ends");
    }
    let has_no_body = to_head || head.status < 200 || matches!(head.status, 204 | 304);
    head.framing = match (coding, length) {
        _ if has_no_body => Framing::Empty,
        (Some(_), _) => Framing::Chunked,
        (None, Some(0)) => Framing::Empty,
        (None, Some(length)) => Framing::Length(length),
        (None, None) => Framing::UntilClose,
    };
    // Only 1xx and 204 have no length to tell (RFC 9110, 8.6).
    head.told_length = length.filter(|_| head.status >= 200 && head.status != 204);
    head.close = close || (head.version == Version::Http10 && !keep_alive);
    head.kept_for = kept_for;
    if listed {
        head.fields.mark_listed();
    }
    Ok(())
}

/// The parser lets lines end with LF alone; others do not, or take a CR for an end.
fn check_lines(head: &[u8]) -> Result<(), &'static str> {
    if memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r') {
        Ok(())
    } else {
        Err("a line ends with LF alone")
    }
}

/// Why a head that has not ended within its bounds is refused.
pub(crate) fn too_large(bytes: &[u8], bounds: Bounds) -> Problem {
    if memchr::memchr(b'\n', &bytes[..bytes.len().min(bounds.bytes)]).is_none() {
        let detail = "the first line is longer than a whole head may be";
        return Problem::new(Kind::TooLarge, detail).with_status(414);
    }
    Problem::new(Kind::TooLarge, "the head is larger than is allowed")
}

fn refused(error: httparse::Error) -> Problem {
    match error {
        httparse::Error::TooManyHeaders => Problem::new(Kind::TooLarge, "the head has more fields than are allowed"),
        httparse::Error::HeaderName => {
            Problem::bad("a field's name is none: a space in it, before its colon or before it, or a line folded")
        }
        httparse::Error::HeaderValue => Problem::bad("a field's value has characters that it must not have"),
        httparse::Error::NewLine => Problem::bad("a line does not end with CR LF"),
        httparse::Error::Version => Problem::bad("the version is neither HTTP/1.1 nor HTTP/1.0"),
        _ => Problem::bad("the first line is not a method, target and version"),
    }
}
