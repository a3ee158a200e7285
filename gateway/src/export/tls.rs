//! TLS towards destinations: bundled roots, a CA file beside them, client certificates, rotation.
//!
//! The files are looked at for each new connection and read again when they changed; a connection that exists is kept.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::stamp::Stamp;
use crate::config::Tls;

/// The TLS side of one destination.
#[derive(Debug)]
pub(crate) struct TlsClient {
    settings: Tls,
    name: ServerName<'static>,
    alpn: Vec<Vec<u8>>,
    cached: RefCell<Option<Cached>>,
}

/// What was built, and of which files.
type Cached = (Vec<Option<Stamp>>, Arc<ClientConfig>);

impl TlsClient {
    /// Reads the files once, so that a mistake is found at the start.
    pub(crate) fn new(settings: Tls, host: &str, alpn: &[&str]) -> io::Result<Self> {
        let name = settings.server_name.as_deref().unwrap_or(host).to_owned();
        let shown = name.clone();
        let name = ServerName::try_from(name)
            .map_err(|_| io::Error::other(format!("{shown:?} is no name that a certificate could carry")))?;
        let alpn = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let client = Self { settings, name, alpn, cached: RefCell::new(None) };
        client.config()?;
        Ok(client)
    }

    /// Whom the certificate must name.
    pub(crate) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }

    /// The settings of a new connection. Sessions are resumed as long as no file changes.
    pub(crate) fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let files = [&self.settings.ca_file, &self.settings.cert_file, &self.settings.key_file];
        let stamps: Vec<_> = files.into_iter().map(|file| file.as_deref().and_then(Stamp::of)).collect();
        let mut cached = self.cached.borrow_mut();
        match &*cached {
            Some((read, config)) if *read == stamps => Ok(config.clone()),
            _ => {
                let config = Arc::new(self.read()?);
                *cached = Some((stamps, config.clone()));
                Ok(config)
            }
        }
    }

    fn read(&self) -> io::Result<ClientConfig> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(file) = &self.settings.ca_file {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| in_file(file, error))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots);
        let mut config = match (&self.settings.cert_file, &self.settings.key_file) {
            (Some(cert), Some(key)) => {
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| in_file(key, error))?;
                let chain = certificates(cert)?;
                builder.with_client_auth_cert(chain, private).map_err(|error| in_file(cert, error))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(config)
    }
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).map_err(|error| in_file(file, error))?;
    let found: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| in_file(file, error))?;
    if found.is_empty() {
        return Err(in_file(file, "no PEM certificate in it"));
    }
    Ok(found)
}

fn in_file(file: &Path, problem: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {problem}", file.display()))
}
