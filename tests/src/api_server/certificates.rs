//! A certificate authority for one test, the server's certificate and clients' certificates.

use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};

/// A name that no resolver knows; a test's /etc/hosts may.
pub const NAME: &str = "api.shunt.test";

/// What a server with TLS needs.
#[derive(Debug)]
pub struct Certificates {
    authority: String,
    issuer: Issuer<'static, KeyPair>,
    pub(super) config: Arc<ServerConfig>,
}

impl Certificates {
    /// For a server at 127.0.0.1 or at any address of the harness's clusters, or called [`NAME`].
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        let names = ["127.0.0.1", "192.168.8.100", "192.168.8.1", NAME].map(str::to_owned);
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
        Ok(Self { authority: certificate.pem(), issuer, config: Arc::new(config) })
    }

    /// The authority's certificate, as PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// A client's certificate and key, as PEM.
    pub fn client(&self) -> Result<(String, String)> {
        let mut params = CertificateParams::new(vec!["shunt".to_owned()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}
