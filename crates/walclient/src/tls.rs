//! TLS to the server, as `sslmode` and its companions in a connection string ask for.
//!
//! The client asks with an `SSLRequest` in front of everything else, and the server answers with one byte. What is checked
//! of its certificate:
//!
//! | sslmode | signed by a trusted authority | for this host |
//! |---|---|---|
//! | prefer, require | – | – |
//! | verify-ca | yes | – |
//! | verify-full | yes | yes |
//!
//! Trusted are the certificates in `sslrootcert`, or those of the operating system. A server may show one of them itself,
//! as with `openssl req -x509`, which Postgres's manual recommends for a start: a certificate that is byte for byte one
//! that the user gave needs no signature. That the other side holds the certificate's key is checked in every mode.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lakebed_pgwire::target::Ssl;
use lakebed_pgwire::{SslMode, channel_binding};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Name of the protocol inside, for servers from 17 on; the others do not look.
const ALPN: &[u8] = b"postgresql";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server speaks none.
    #[error("the server does not speak TLS (ssl = off), and sslmode asks for it")]
    Refused,
    /// A file of certificates or a key.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Nobody is trusted.
    #[error(
        "the operating system trusts no certificate authorities (package ca-certificates): name those of the server with \
         sslrootcert"
    )]
    NoRoots,
    /// The settings do not fit each other.
    #[error("TLS: {0}")]
    Config(#[from] rustls::Error),
    /// The host is neither a name nor an address.
    #[error("`{0}` cannot be in a certificate: {1}")]
    Name(String, InvalidDnsNameError),
    /// The handshake failed: most often the certificate is not what is asked for.
    #[error("the TLS handshake with the server failed: {0}")]
    Handshake(std::io::Error),
}

impl TlsError {
    /// Whether it is the network's, so that it may be gone the next time.
    pub fn is_passing(&self) -> bool {
        match self {
            // What a certificate lacks is inside of it.
            TlsError::Handshake(error) => !error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()),
            _ => false,
        }
    }
}

/// A connection inside TLS, and what ties a login to it.
pub struct Secured {
    /// The connection.
    pub stream: TlsStream<TcpStream>,
    /// Its [`channel_binding::server_end_point`].
    pub end_point: Option<Vec<u8>>,
}

/// The handshake, on a connection whose server has agreed to it.
///
/// # Errors
/// See [`TlsError`]: trying again helps only with an interrupted handshake.
pub async fn secure(socket: TcpStream, host: &str, ssl: &Ssl) -> Result<Secured, TlsError> {
    let name =
        ServerName::try_from(host.to_owned()).map_err(|error| TlsError::Name(host.to_owned(), error))?;
    let ssl = ssl.clone();
    // Reads files, each time: certificates are renewed while a client runs for months.
    let config = tokio::task::spawn_blocking(move || client_config(&ssl)).await;
    let config = config.map_err(|error| TlsError::Handshake(error.into()))??;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector
        .connect(name, socket)
        .await
        .map_err(TlsError::Handshake)?;
    let certificates = stream.get_ref().1.peer_certificates();
    let end_point = certificates
        .and_then(|chain| chain.first())
        .and_then(|certificate| channel_binding::server_end_point(certificate));
    Ok(Secured { stream, end_point })
}

fn client_config(ssl: &Ssl) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Verifier {
        trusted: trusted(ssl)?,
        check_name: ssl.mode == SslMode::VerifyFull,
        provider: provider.clone(),
    });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &ssl.own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
            builder.with_client_auth_cert(certificates(certificate)?, key)?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn unreadable<E: ToString>(path: &Path) -> impl FnOnce(E) -> TlsError {
    let path = path.to_owned();
    move |error| TlsError::File {
        path,
        reason: error.to_string(),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(unreadable(path))?;
    match found.is_empty() {
        true => Err(unreadable(path)("no certificate is in it")),
        false => Ok(found),
    }
}

/// Who may have signed the server's certificate.
#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    /// What the user gave, to be recognised itself.
    given: Vec<CertificateDer<'static>>,
}

/// None: nobody is asked.
fn trusted(ssl: &Ssl) -> Result<Option<Trusted>, TlsError> {
    if ssl.mode < SslMode::VerifyCa {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    let given = match &ssl.root {
        Some(path) => {
            let given = certificates(path)?;
            for certificate in &given {
                roots.add(certificate.clone()).map_err(unreadable(path))?;
            }
            given
        }
        None => {
            // Some of an operating system's are of kinds that are not understood here; the others count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Vec::new()
        }
    };
    match roots.is_empty() {
        true => Err(TlsError::NoRoots),
        false => Ok(Some(Trusted { roots, given })),
    }
}

/// Checks what the mode asks for.
#[derive(Debug)]
struct Verifier {
    trusted: Option<Trusted>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trusted) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(shown)?;
        if !trusted.given.iter().any(|given| given == shown) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &trusted.roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        if self.check_name {
            verify_server_name(&certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
