//! The dashboard: files that are in the program, for browsers. What they show they fetch from the API, as everybody else does.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use hyper::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, StatusCode};

use crate::State;
use crate::api::{has_already, tag};

/// A file, and the path under which it is served.
struct Asset {
    path: &'static str,
    kind: &'static str,
    content: &'static [u8],
}

macro_rules! assets {
    ($($path:literal = $file:literal: $kind:literal),* $(,)?) => {
        &[$(Asset { path: $path, kind: $kind, content: include_bytes!(concat!("../assets/", $file)) }),*]
    };
}

/// All that a browser loads.
const ASSETS: &[Asset] = assets![
    "/" = "index.html": "text/html; charset=utf-8",
    "/favicon.ico" = "icon.svg": "image/svg+xml",
    "/assets/icon.svg" = "icon.svg": "image/svg+xml",
    "/assets/style.css" = "style.css": "text/css; charset=utf-8",
    "/assets/views.css" = "views.css": "text/css; charset=utf-8",
    "/assets/traffic.css" = "traffic.css": "text/css; charset=utf-8",
    "/assets/app.js" = "app.js": "text/javascript; charset=utf-8",
    "/assets/api.js" = "api.js": "text/javascript; charset=utf-8",
    "/assets/chart.js" = "chart.js": "text/javascript; charset=utf-8",
    "/assets/dialogs.js" = "dialogs.js": "text/javascript; charset=utf-8",
    "/assets/dom.js" = "dom.js": "text/javascript; charset=utf-8",
    "/assets/events.js" = "events.js": "text/javascript; charset=utf-8",
    "/assets/filter.js" = "filter.js": "text/javascript; charset=utf-8",
    "/assets/keys.js" = "keys.js": "text/javascript; charset=utf-8",
    "/assets/metrics.js" = "metrics.js": "text/javascript; charset=utf-8",
    "/assets/service.js" = "service.js": "text/javascript; charset=utf-8",
    "/assets/services.js" = "services.js": "text/javascript; charset=utf-8",
    "/assets/status.js" = "status.js": "text/javascript; charset=utf-8",
    "/assets/store.js" = "store.js": "text/javascript; charset=utf-8",
    "/assets/stream.js" = "stream.js": "text/javascript; charset=utf-8",
    "/assets/table.js" = "table.js": "text/javascript; charset=utf-8",
    "/assets/track.js" = "track.js": "text/javascript; charset=utf-8",
    "/assets/traffic.js" = "traffic.js": "text/javascript; charset=utf-8",
];

/// Names of services and tags come from strangers: should one ever become markup, it still could not do anything.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// Every path of the dashboard, with what answers there to `GET` and `HEAD`.
pub(crate) fn routes() -> impl Iterator<Item = (&'static str, MethodRouter<Arc<State>>)> {
    ASSETS.iter().map(|asset| {
        let etag = etag(asset.content);
        (asset.path, get(move |headers: HeaderMap| async move { asset.answer(&headers, &etag) }))
    })
}

fn etag(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

impl Asset {
    fn answer(&self, asked: &HeaderMap, etag: &str) -> Response {
        let mut response = match has_already(asked, etag) {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => Bytes::from_static(self.content).into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
        // Another version of the agent may answer the next time.
        tag(headers, etag);
        response
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_stays_small() {
        let files: BTreeMap<&str, usize> = ASSETS.iter().map(|asset| (asset.path, asset.content.len())).collect();
        let bytes: usize = files.iter().filter(|(path, _)| **path != "/favicon.ico").map(|(_, bytes)| bytes).sum();
        // With the first events and all headers it is to be 150 KiB at most.
        assert!(bytes <= 136 << 10, "{bytes} bytes: {files:?}");
    }

    #[test]
    fn whatever_the_files_name_is_served() {
        for asset in ASSETS.iter().filter(|asset| asset.kind.starts_with("text/")) {
            let text = std::str::from_utf8(asset.content).unwrap();
            for from in ["\"assets/", "\"./"] {
                for named in text.split(from).skip(1) {
                    let path = format!("/assets/{}", named.split('"').next().unwrap());
                    assert!(ASSETS.iter().any(|asset| asset.path == path), "{} names {path}", asset.path);
                }
            }
        }
    }

    #[test]
    fn nothing_is_inline_that_the_policy_forbids() {
        for asset in ASSETS {
            let text = std::str::from_utf8(asset.content).unwrap();
            for forbidden in [" style=", "<style", " onclick=", "innerHTML", "outerHTML", "insertAdjacentHTML", "eval("]
            {
                assert!(!text.contains(forbidden), "{}: {forbidden}", asset.path);
            }
        }
    }

    #[test]
    fn what_a_browser_has_is_not_sent_again() {
        let asset = &ASSETS[0];
        let etag = etag(asset.content);
        let whole = asset.answer(&HeaderMap::new(), &etag);
        assert_eq!(whole.status(), StatusCode::OK);
        assert_eq!(whole.headers()[hyper::header::ETAG], format!("W/{etag}"));
        let known = HeaderMap::from_iter([(hyper::header::IF_NONE_MATCH, HeaderValue::try_from(&etag).unwrap())]);
        assert_eq!(asset.answer(&known, &etag).status(), StatusCode::NOT_MODIFIED);
    }
}
