//! Traces: a request, the saga that it starts, the relay and all handlers form one tree.

use std::collections::HashMap;

use opentelemetry::trace::{SpanId, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tidings::saga::SagaStatus;
use tracing::{Instrument as _, info_span};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

use crate::support::eventually::eventually;
use crate::support::shop::{Shop, place_order};

/// Returns the spans as an indented tree, without the prefix that the test's topics have in common.
/// An event that was sent or handled again, because a server was slow, counts once.
fn tree(spans: &[SpanData], topics: &str) -> String {
    let mut children = HashMap::<SpanId, Vec<&SpanData>>::new();
    for span in spans {
        children.entry(span.parent_span_id).or_default().push(span);
    }
    let mut lines = String::new();
    let mut rest: Vec<(usize, &SpanData)> = roots(spans).map(|root| (0, root)).collect();
    while let Some((depth, span)) = rest.pop() {
        lines += &format!("{}{}\n", "  ".repeat(depth), span.name.replace(topics, ""));
        let mut below = children
            .remove(&span.span_context.span_id())
            .unwrap_or_default();
        // A relay sends an event at any time before or after a handler begins.
        let order = |span: &SpanData| (!span.name.starts_with("send"), span.start_time);
        below.sort_by_key(|child| std::cmp::Reverse(order(child)));
        below.dedup_by(|earlier, later| {
            earlier.name == later.name
                && attribute(earlier, "messaging.message.id").is_some()
                && attribute(earlier, "messaging.message.id")
                    == attribute(later, "messaging.message.id")
        });
        rest.extend(below.into_iter().map(|child| (depth + 1, child)));
    }
    lines
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let mut attributes = span.attributes.iter();
    attributes
        .find(|attribute| attribute.key.as_str() == key)
        .map(|attribute| attribute.value.to_string())
}

fn roots(spans: &[SpanData]) -> impl Iterator<Item = &SpanData> {
    let is_known = |id: SpanId| spans.iter().any(|span| span.span_context.span_id() == id);
    spans
        .iter()
        .filter(move |span| !is_known(span.parent_span_id))
}

/// A request whose saga completes.
const COMPLETED: &str = "\
POST /orders
  send order
  process order
    place-order reserve
      send stock
      process stock
        send stock
        process stock
          place-order pay
            send payment
            process payment
              send payment
              process payment
                send saga
                place-order confirm
";

/// A request whose payment is refused. The second `place-order reserve` is a compensation.
const COMPENSATED: &str = "\
POST /orders
  send order
  process order
    place-order reserve
      send stock
      process stock
        send stock
        process stock
          place-order pay
            send payment
            process payment
              send payment
              process payment
                send saga
                place-order reserve
                  send stock
                  process stock
";

/// The test runs on one thread, because its subscriber of `tracing` belongs to its thread.
#[tokio::test]
async fn a_request_and_the_saga_that_it_starts_are_one_trace() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    opentelemetry::global::set_tracer_provider(provider.clone());
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("shop"))
        .with_filter(Targets::new().with_targets([
            ("tidings", tracing::Level::INFO),
            ("it", tracing::Level::INFO),
        ]));
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

    let mut shop = Shop::open().await;
    shop.serve();
    shop.run(place_order());
    for (order, end, expected) in [
        (10, SagaStatus::Completed, COMPLETED),
        (12, SagaStatus::Compensated, COMPENSATED),
    ] {
        exporter.reset();
        let request = info_span!("POST /orders");
        shop.place([order]).instrument(request).await;
        shop.until(order, end).await;
        let topics = shop.topic("");
        let spans = eventually("the spans form the tree", async || {
            let spans = exporter.get_finished_spans().expect("the spans");
            let tree = tree(&spans, &topics);
            (tree == expected).then_some(spans).ok_or(tree)
        })
        .await;
        let trace = spans[0].span_context.trace_id();
        let same = |span: &SpanData| span.span_context.trace_id() == trace;
        assert!(spans.iter().all(same), "one trace");
        let compensations = spans
            .iter()
            .filter(|span| attribute(span, "compensation").as_deref() == Some("true"));
        assert_eq!(compensations.count(), usize::from(order == 12));
        let committed = |span: &SpanData| span.events.iter().any(|event| event.name == "committed");
        let mut sent = spans.iter().filter(|span| span.name.starts_with("send"));
        assert!(sent.any(committed), "the relay has read the log");
    }
    shop.close().await;
}
