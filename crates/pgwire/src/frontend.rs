//! Messages of the client.

use bytes::{BufMut, BytesMut};

/// Protocol 3.0.
const PROTOCOL: u32 = 196_608;
/// Asks for TLS, in place of a protocol version.
const SSL_REQUEST: u32 = 80_877_103;

/// Writes a message of this type around what `body` writes.
fn message(out: &mut BytesMut, kind: Option<u8>, body: impl FnOnce(&mut BytesMut)) {
    if let Some(kind) = kind {
        out.put_u8(kind);
    }
    let start = out.len();
    out.put_u32(0);
    body(out);
    // Nothing that this client writes comes near 4 GiB: texts are from its own command line.
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Text and the zero byte that ends it. A zero inside would end it early and turn the rest into something else.
fn text(out: &mut BytesMut, text: &str) {
    out.extend(text.bytes().filter(|&byte| byte != 0));
    out.put_u8(0);
}

/// Asks whether the server speaks TLS; it answers with one byte, `S` or `N`.
pub fn ssl_request(out: &mut BytesMut) {
    message(out, None, |out| out.put_u32(SSL_REQUEST));
}

/// Begins a session with these parameters (`user`, `replication`, …).
pub fn startup(out: &mut BytesMut, parameters: &[(&str, &str)]) {
    message(out, None, |out| {
        out.put_u32(PROTOCOL);
        for (name, value) in parameters {
            text(out, name);
            text(out, value);
        }
        out.put_u8(0);
    });
}

/// A password, plain or as MD5 asks for it.
pub fn password(out: &mut BytesMut, password: &str) {
    message(out, Some(b'p'), |out| text(out, password));
}

/// The first message of a SASL exchange.
pub fn sasl_initial(out: &mut BytesMut, mechanism: &str, data: &[u8]) {
    message(out, Some(b'p'), |out| {
        text(out, mechanism);
        out.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
        out.put_slice(data);
    });
}

/// A further message of a SASL exchange.
pub fn sasl_response(out: &mut BytesMut, data: &[u8]) {
    message(out, Some(b'p'), |out| out.put_slice(data));
}

/// A command.
pub fn query(out: &mut BytesMut, command: &str) {
    message(out, Some(b'Q'), |out| text(out, command));
}

/// Data in copy mode.
pub fn copy_data(out: &mut BytesMut, data: &[u8]) {
    message(out, Some(b'd'), |out| out.put_slice(data));
}

/// The end of this side's data.
pub fn copy_done(out: &mut BytesMut) {
    message(out, Some(b'c'), |_| {});
}

/// The end of the session.
pub fn terminate(out: &mut BytesMut) {
    message(out, Some(b'X'), |_| {});
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_their_own_length() {
        let mut out = BytesMut::new();
        query(&mut out, "SHOW x");
        assert_eq!(&out[..], b"Q\0\0\0\x0bSHOW x\0");
        out.clear();
        startup(&mut out, &[("user", "me\0you")]);
        assert_eq!(&out[..], b"\0\0\0\x14\0\x03\0\0user\0meyou\0\0");
        out.clear();
        sasl_initial(&mut out, "SCRAM-SHA-256", b"n,,");
        assert_eq!(&out[..], b"p\0\0\0\x19SCRAM-SHA-256\0\0\0\0\x03n,,");
    }
}
