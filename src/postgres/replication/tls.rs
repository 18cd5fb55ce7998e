//! TLS of the replication connection, with libpq's meanings of `sslmode` (PostgreSQL manual, "SSL
//! Support", table 32.1).

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring},
    },
};

use super::ReplicationError;
use crate::postgres::{DatabaseSettings, SslMode, settings::SslNegotiation};

/// Creates a connector for these settings.
///
/// # Errors
///
/// Returns an error if a certificate or key file cannot be read.
pub(super) fn connector(settings: &DatabaseSettings) -> Result<TlsConnector, ReplicationError> {
    let provider = Arc::new(ring::default_provider());
    let check = match settings.ssl_mode() {
        SslMode::VerifyFull => Check::ChainAndName(verifier(settings, &provider)?),
        SslMode::VerifyCa => Check::Chain(verifier(settings, &provider)?),
        SslMode::Disable | SslMode::Prefer | SslMode::Require => Check::Nothing,
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(describe)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { check, provider }));
    let config = match settings.ssl_client_identity() {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let chain = chain.map_err(|error| unreadable("sslcert", certificate, error))?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unreadable("sslkey", key, error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(describe)?
        }
    };
    let mut config = config;
    config.enable_sni = settings.ssl_sni();
    if settings.ssl_negotiation() == SslNegotiation::Direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(TlsConnector::from(Arc::new(config)))
}

fn verifier(
    settings: &DatabaseSettings,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, ReplicationError> {
    let mut roots = RootCertStore::empty();
    match settings.ssl_root_cert() {
        Some(file) => {
            for certificate in CertificateDer::pem_file_iter(file)
                .map_err(|error| unreadable("sslrootcert", file, error))?
            {
                roots
                    .add(certificate.map_err(|error| unreadable("sslrootcert", file, error))?)
                    .map_err(describe)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(describe)
}

fn describe(error: impl std::fmt::Display) -> ReplicationError {
    ReplicationError::Tls(error.to_string())
}

fn unreadable(
    option: &str,
    file: &std::path::Path,
    error: impl std::fmt::Display,
) -> ReplicationError {
    ReplicationError::Tls(format!(
        "{option} {} cannot be read: {error}",
        file.display()
    ))
}

/// Verification of the server's certificate.
#[derive(Debug)]
enum Check {
    Nothing,
    Chain(Arc<WebPkiServerVerifier>),
    ChainAndName(Arc<WebPkiServerVerifier>),
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    provider: Arc<CryptoProvider>,
}

// === impl ServerCertVerifier ===

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (chain, name_matters) = match &self.check {
            Check::Nothing => return Ok(ServerCertVerified::assertion()),
            Check::Chain(chain) => (chain, false),
            Check::ChainAndName(chain) => (chain, true),
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The chain is verified before the name, so this error implies that the chain is valid.
            Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::NotValidForName
                | rustls::CertificateError::NotValidForNameContext { .. },
            )) if !name_matters => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
