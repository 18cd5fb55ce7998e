//! Server-sent events: the content of a page, each time it changes.
//!
//! A stream waits for the samples of the databases that its page shows. It renders the page again
//! and sends it only if it differs from the version that the tab has. The id of an event is a
//! fingerprint of the content, so a tab that reconnects receives nothing that it already shows.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::select_all;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep};

use super::assets::fingerprint;
use super::sampler::Sample;
use super::view::View;

/// Maximum number of open streams. Each is an open tab, and costs one connection.
pub(super) const STREAMS_MAX: usize = 24;

/// Interval of comments on a quiet stream, so that proxies keep it open.
const QUIET_MAX: Duration = Duration::from_secs(15);

/// One open tab.
struct Tab {
    view: View,
    samples: Vec<watch::Receiver<Sample>>,
    /// Fingerprint of the content that the tab shows.
    known: Option<String>,
    rendered_at: Option<Instant>,
    _permit: OwnedSemaphorePermit,
}

/// Responds with the stream of a page, or with 503 if too many streams are open.
pub(super) fn response(view: View, known: Option<String>) -> Response {
    let Ok(permit) = view.shared.streams.clone().try_acquire_owned() else {
        let text = "Too many tabs are open; this one does not update by itself.\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let samples = view
        .shown_sources()
        .iter()
        .map(|source| {
            let receiver = source.samples.subscribe();
            source.opened.notify_one();
            receiver
        })
        .collect();
    let tab = Tab {
        view,
        samples,
        known,
        rendered_at: None,
        _permit: permit,
    };
    let events = stream::unfold(tab, |mut tab| async move {
        let event = tab.next().await?;
        Some((Ok::<_, Infallible>(event), tab))
    });
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    // nginx buffers responses unless this header forbids it.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Tab {
    /// Returns the next event. `None` ends the stream.
    async fn next(&mut self) -> Option<String> {
        let shutdown = self.view.shared.shutdown.clone();
        let quiet = Instant::now() + QUIET_MAX;
        loop {
            if self.is_due() {
                self.rendered_at = Some(Instant::now());
                self.view.now = chrono::Utc::now();
                let content = self.view.page.content(&self.view).await.into_string();
                let version = version(&content);
                if self.known.as_ref() != Some(&version) {
                    let event = event(&version, &content);
                    self.known = Some(version);
                    return Some(event);
                }
            }
            let changed = self.samples.iter_mut().map(|one| Box::pin(one.changed()));
            tokio::select! {
                () = shutdown.cancelled() => return None,
                (changed, ..) = select_all(changed) => changed.ok()?,
                () = sleep(quiet.saturating_duration_since(Instant::now())) => {
                    return Some(":\n\n".into());
                }
            }
        }
    }

    /// Returns `true` if the page has to be rendered again.
    fn is_due(&self) -> bool {
        self.rendered_at
            .is_none_or(|at| at.elapsed() >= self.view.page.live_every())
    }
}

/// Returns the version of a page's content.
pub(super) fn version(content: &str) -> String {
    format!("{:016x}", fingerprint(content))
}

/// Formats an event. Each line of the content is one `data` field.
fn event(version: &str, content: &str) -> String {
    let mut event = format!("id: {version}\n");
    for line in content.split(['\n', '\r']) {
        event.push_str("data: ");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_cannot_end_its_event_or_begin_another_one() {
        let event = event("7", "a\n\nevent: x\rid: 9");
        assert_eq!(
            event,
            "id: 7\ndata: a\ndata: \ndata: event: x\ndata: id: 9\n\n"
        );
    }
}
