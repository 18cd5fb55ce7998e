//! Embedded files: style, script and icon.

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::fnv::fnv1a;

/// An embedded file.
pub(super) struct Asset {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
}

/// The files, by name.
const ASSETS: [Asset; 3] = [
    Asset {
        name: "style.css",
        content_type: "text/css; charset=utf-8",
        text: include_str!("style.css"),
    },
    Asset {
        name: "live.js",
        content_type: "text/javascript; charset=utf-8",
        text: include_str!("live.js"),
    },
    Asset {
        name: "icon.svg",
        content_type: "image/svg+xml",
        text: include_str!("icon.svg"),
    },
];

/// Returns the file of this name.
pub(super) fn find(name: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.name == name)
}

impl Asset {
    /// Responds with the file, or with 304 if the client has this version.
    pub(super) fn response(&self, request: &Request) -> Response {
        let tag = format!("\"{:016x}\"", fingerprint(self.text));
        let known = request.headers().get(header::IF_NONE_MATCH);
        let mut response = match known {
            Some(known) if known.as_bytes() == tag.as_bytes() => {
                StatusCode::NOT_MODIFIED.into_response()
            }
            _ => ([(header::CONTENT_TYPE, self.content_type)], self.text).into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Ok(tag) = tag.parse() {
            headers.insert(header::ETAG, tag);
        }
        response
    }
}

/// Returns the hash that identifies a version of a file.
pub(super) fn fingerprint(text: &str) -> u64 {
    fnv1a(text.bytes())
}
