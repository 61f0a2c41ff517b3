//! What ties a SCRAM login to the TLS connection that it runs in: `tls-server-end-point` of RFC 5929.
//!
//! Client and server both put a hash of the server's certificate into the exchange. Somebody in between, who shows the
//! client a certificate of his own, makes the two differ and cannot change that without the password. So a login with it
//! proves the other end of the connection even where nobody has checked the certificate.
//!
//! The hash is the one of the certificate's signature, but SHA-256 in place of MD5 and SHA-1. Signatures without a hash of
//! their own (Ed25519) have no binding; Postgres has none then either.

use sha2::{Digest, Sha256, Sha384, Sha512};

/// Tag of a DER SEQUENCE.
const SEQUENCE: u8 = 0x30;
/// Tag of a DER OBJECT IDENTIFIER.
const OBJECT_IDENTIFIER: u8 = 0x06;

/// A hash of the server's certificate, and the object identifiers of the signatures that use it (RFC 3279, 4055, 5758).
type Signatures = (fn(&[u8]) -> Vec<u8>, &'static [&'static [u8]]);
/// See [`Signatures`].
const SIGNATURES: [Signatures; 3] = [
    (
        |der| Sha256::digest(der).to_vec(),
        &[
            // md5WithRSAEncryption, sha1WithRSAEncryption, sha256WithRSAEncryption: 1.2.840.113549.1.1.{4,5,11}
            b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04",
            b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05",
            b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b",
            // ecdsa-with-SHA1, ecdsa-with-SHA256: 1.2.840.10045.4.1, 1.2.840.10045.4.3.2
            b"\x2a\x86\x48\xce\x3d\x04\x01",
            b"\x2a\x86\x48\xce\x3d\x04\x03\x02",
        ],
    ),
    (
        |der| Sha384::digest(der).to_vec(),
        &[
            b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c",
            b"\x2a\x86\x48\xce\x3d\x04\x03\x03",
        ],
    ),
    (
        |der| Sha512::digest(der).to_vec(),
        &[
            b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d",
            b"\x2a\x86\x48\xce\x3d\x04\x03\x04",
        ],
    ),
];

/// The binding of a connection whose server showed this certificate (DER). `None`: its signature is of a kind without
/// one, or it is no certificate.
pub fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = signature_algorithm(certificate)?;
    let (hash, _) = SIGNATURES
        .iter()
        .find(|(_, signatures)| signatures.contains(&algorithm))?;
    Some(hash(certificate))
}

/// `Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { algorithm OID, … }, … }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (body, _) = element(certificate, SEQUENCE)?;
    let (_, rest) = element(body, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    Some(element(algorithm, OBJECT_IDENTIFIER)?.0)
}

/// The content of the DER element with this tag at the start, and what follows it.
fn element(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, length], rest) = input.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    // The short form of a length, or the number of its bytes.
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length - 0x80))?;
            let length = bytes
                .iter()
                .fold(0u64, |value, &byte| value << 8 | u64::from(byte));
            (usize::try_from(length).ok()?, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate with this signature algorithm and nothing else of use; `filler` bytes are signed.
    fn certificate(algorithm: &[u8], filler: usize) -> Vec<u8> {
        let wrap = |tag: u8, content: &[u8]| {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            [&[tag, 0x82][..], &length, content].concat()
        };
        let signed = wrap(SEQUENCE, &vec![0; filler]);
        let named = wrap(SEQUENCE, &wrap(OBJECT_IDENTIFIER, algorithm));
        wrap(SEQUENCE, &[signed, named].concat())
    }

    #[test]
    fn the_hash_is_the_signatures() {
        for (algorithm, bytes) in [
            (&b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05"[..], Some(32)),
            (b"\x2a\x86\x48\xce\x3d\x04\x03\x02", Some(32)),
            (b"\x2a\x86\x48\xce\x3d\x04\x03\x03", Some(48)),
            (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", Some(64)),
            // Ed25519.
            (b"\x2b\x65\x70", None),
        ] {
            let der = certificate(algorithm, 300);
            assert_eq!(
                server_end_point(&der).map(|hash| hash.len()),
                bytes,
                "{algorithm:x?}"
            );
        }
        let der = certificate(b"\x2a\x86\x48\xce\x3d\x04\x03\x02", 3);
        assert_eq!(server_end_point(&der), Some(Sha256::digest(&der).to_vec()));
    }

    #[test]
    fn what_is_no_certificate_has_none() {
        let der = certificate(b"\x2a\x86\x48\xce\x3d\x04\x03\x02", 3);
        for length in 0..der.len() {
            assert_eq!(server_end_point(&der[..length]), None, "{length}");
        }
        assert_eq!(server_end_point(b"\x30\x85\xff\xff\xff\xff\xff"), None);
        assert_eq!(server_end_point(b"\x30\x80\x00\x00"), None);
    }
}
