//! Certificates made on the spot.

use rcgen::{CertificateParams, DnType, KeyPair};

/// A certificate for `name`, and its key. `issuer` signs it: itself.
pub(crate) fn certificate(name: &str, issuer: &str) -> (rcgen::Certificate, KeyPair) {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, issuer);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap(), key)
}
