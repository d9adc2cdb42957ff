//! Certificates and keys in PEM files (RFC 7468).

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// What some editors put in front of a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Why a file has none. The text follows the file's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PemError(String);

/// All certificates of a file, of which there must be one.
pub fn certificates(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let file = pem(file, "x509")?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(file).collect();
    let found = found.map_err(|error| PemError(format!("cannot be read as PEM ({error}); write it anew")))?;
    if found.is_empty() {
        return Err(PemError("has no certificate in it; one begins with -----BEGIN CERTIFICATE-----".into()));
    }
    Ok(found)
}

/// The private key of a file.
pub fn private_key(file: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_slice(pem(file, "pkey")?).map_err(|_| {
        let example = "one begins with -----BEGIN PRIVATE KEY----- and has no password";
        PemError(format!("has no private key in it that can be used; {example}"))
    })
}

/// `command`: openssl's, which makes PEM of DER.
fn pem<'f>(file: &'f [u8], command: &str) -> Result<&'f [u8], PemError> {
    let file = file.strip_prefix(BYTE_ORDER_MARK).unwrap_or(file);
    if file.trim_ascii().is_empty() {
        return Err(PemError("is empty".into()));
    }
    // A sequence with a length of several bytes, as every certificate and key is (X.690 section 8.9).
    if file.starts_with(&[0x30, 0x81]) || file.starts_with(&[0x30, 0x82]) {
        return Err(PemError(format!(
            "is DER, not PEM; make PEM of it: openssl {command} -inform der -in FILE -out FILE.pem"
        )));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    #[test]
    fn what_is_no_pem_says_what_it_is() {
        assert_eq!(certificates(ONE.as_bytes()).map(|found| found.len()), Ok(1));
        assert_eq!(certificates(format!("\u{feff}# text\n{ONE}{ONE}").as_bytes()).map(|found| found.len()), Ok(2));
        for (file, words) in [
            (&b""[..], "is empty"),
            (b"\xEF\xBB\xBF \n", "is empty"),
            (b"\x30\x82\x01\x00", "is DER"),
            (b"text", "has no certificate"),
            (b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n", "has no certificate"),
            (b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", "cannot be read as PEM"),
            (b"-----BEGIN CERTIFICATE-----\nMAA=\n", "cannot be read as PEM"),
        ] {
            let found = certificates(file).unwrap_err().to_string();
            assert!(found.contains(words), "{file:?}: {found}");
        }
        assert!(private_key(ONE.as_bytes()).is_err());
        assert!(private_key(b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n").is_ok());
    }
}
