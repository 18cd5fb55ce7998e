//! Export of the relay's spans by OTLP over HTTP.
//!
//! The variables are those of OpenTelemetry (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME` and
//! so on). The exporter has a thread of its own, and drops spans if its queue is full.

use crate::cli::exit::Failure;

/// Variables with the address of the collector, in the order of precedence.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// The running export.
pub(super) struct Traces {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

/// Returns the address of the collector, if one is set.
///
/// # Errors
///
/// Returns a failure for an address that needs TLS.
fn endpoint(variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>, Failure> {
    let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value == "true");
    let mut given = ENDPOINTS
        .iter()
        .filter_map(|name| Some((name, variable(name).filter(|value| !value.is_empty())?)));
    match given.next().filter(|_| !is_disabled) {
        None => Ok(None),
        Some((_, address)) if address.starts_with("http://") => Ok(Some(address)),
        Some((name, _)) => Err(Failure::Failed(format!(
            "{name} is not an address with http://\n  -> name a collector beside the relay, e.g. \
             http://localhost:4318, which forwards the spans by TLS"
        ))),
    }
}

fn of_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Traces {
    /// Starts the export if the environment names a collector.
    ///
    /// # Errors
    ///
    /// Returns a failure if the address cannot be used.
    #[cfg(feature = "otlp")]
    pub(super) fn start() -> Result<Self, Failure> {
        use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
        use opentelemetry_sdk::Resource;
        use opentelemetry_sdk::trace::SdkTracerProvider;

        let Some(address) = endpoint(of_environment)? else {
            return Ok(Self { provider: None });
        };
        let resource = match of_environment("OTEL_SERVICE_NAME") {
            Some(_) => Resource::builder(),
            None => Resource::builder().with_service_name("tidings-relay"),
        };
        // The client must be created outside of the runtime, because it blocks.
        let built = std::thread::spawn(|| {
            let exporter = SpanExporter::builder()
                .with_http()
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .build()?;
            Ok::<_, opentelemetry_otlp::ExporterBuildError>(
                SdkTracerProvider::builder()
                    .with_resource(resource.build())
                    .with_batch_exporter(exporter)
                    .build(),
            )
        });
        let provider = built
            .join()
            .map_err(|_| Failure::Failed("the exporter of spans could not be started".into()))?
            .map_err(|error| Failure::failed("cannot export spans", &error))?;
        opentelemetry::global::set_tracer_provider(provider.clone());
        tracing::info!(collector = address, "exports a span for each sampled event");
        Ok(Self {
            provider: Some(provider),
        })
    }

    /// Reports that this binary exports nothing, if the environment names a collector.
    ///
    /// # Errors
    ///
    /// None; the signature is that of the binary with the feature `otlp`.
    #[cfg(not(feature = "otlp"))]
    pub(super) fn start() -> Result<Self, Failure> {
        if endpoint(of_environment).is_ok_and(|address| address.is_some()) {
            tracing::warn!(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, and no span is exported: build the binary \
                 with `--features otlp`"
            );
        }
        Ok(Self {})
    }

    /// Returns `true` if spans are exported.
    pub(super) fn is_on(&self) -> bool {
        #[cfg(feature = "otlp")]
        return self.provider.is_some();
        #[cfg(not(feature = "otlp"))]
        false
    }

    /// Sends the rest of the spans, for up to five seconds.
    pub(super) async fn end(self) {
        #[cfg(feature = "otlp")]
        if let Some(provider) = self.provider {
            let ending = tokio::task::spawn_blocking(move || provider.shutdown());
            if let Ok(Err(error)) = ending.await {
                tracing::warn!(%error, "the last spans were not exported");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<String>, Failure> {
        endpoint(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_names_the_collector() {
        let (general, traces) = ("OTEL_EXPORTER_OTLP_ENDPOINT", ENDPOINTS[0]);
        assert!(of(&[]).is_ok_and(|none| none.is_none()));
        assert!(of(&[(general, "")]).is_ok_and(|none| none.is_none()));
        let both = of(&[
            (general, "http://a:4318"),
            (traces, "http://b:4318/v1/traces"),
        ]);
        assert!(both.is_ok_and(|address| address.as_deref() == Some("http://b:4318/v1/traces")));
        let disabled = of(&[(general, "http://a:4318"), ("OTEL_SDK_DISABLED", "true")]);
        assert!(disabled.is_ok_and(|none| none.is_none()));
        let refused = of(&[(general, "https://a:4318")]).expect_err("TLS");
        assert!(refused.to_string().contains(general) && refused.to_string().contains("->"));
    }
}
