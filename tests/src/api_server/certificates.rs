//! A certificate authority for one test, the server's certificate and clients' certificates.

use std::{path::Path, sync::Arc};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};

use super::grants;

/// A name that no resolver knows; a test's /etc/hosts may contain it.
pub const NAME: &str = "api.shunt.test";

/// Certificates for a server with TLS.
#[derive(Debug)]
pub struct Certificates {
    authority: String,
    /// The server's certificate and key, as PEM.
    server: (String, String),
    issuer: Issuer<'static, KeyPair>,
    pub(super) config: Arc<ServerConfig>,
}

impl Certificates {
    /// For a server at a loopback address, at the server addresses in the harness's clusters (including the Service
    /// address), or by the name [`NAME`].
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of the harness");
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        let names =
            ["127.0.0.1", "::1", "192.168.8.100", "192.168.8.1", "10.68.0.1", NAME].map(str::to_owned);
        let server_key = KeyPair::generate()?;
        let server = CertificateParams::new(names)?.signed_by(&server_key, &issuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![server.der().clone()], private)?;
        let pems = (server.pem(), server_key.serialize_pem());
        Ok(Self { authority: certificate.pem(), server: pems, issuer, config: Arc::new(config) })
    }

    /// Writes the files that a server reads: `ca.pem`, `server.pem`, `server.key`.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let (certificate, key) = &self.server;
        for (name, text) in [("ca.pem", &self.authority), ("server.pem", certificate), ("server.key", key)] {
            std::fs::write(directory.join(name), text)?;
        }
        Ok(())
    }

    /// The authority's certificate, as PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// A client's certificate and key, as PEM. The client is the agent: the common name is the user name that its
    /// service account's token is authenticated as.
    pub fn client(&self) -> Result<(String, String)> {
        let (namespace, name) = grants::service_account()?;
        let mut params = CertificateParams::new(Vec::new())?;
        let user = format!("system:serviceaccount:{namespace}:{name}");
        params.distinguished_name.push(DnType::CommonName, user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}
