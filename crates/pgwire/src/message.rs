//! Messages of the server: framing, and the kinds that a replication client meets.
//!
//! A message is a type byte, a length of four bytes (big-endian, itself included, the type not), and a body.

use bytes::{Buf, Bytes, BytesMut};

/// Longest message that is accepted, in bytes. Postgres sends at most 128 KiB of WAL or 32 KiB of a base backup in one;
/// everything else that a replication client gets is small.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Most columns of a row that are accepted; replication commands answer with at most a handful.
const MAX_COLUMNS: usize = 64;

/// Why the server's bytes are not messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than any message that is expected, or shorter than its own length field.
    #[error("the server announced a message '{}' of {length} bytes; 4 to {MAX_MESSAGE_BYTES} are possible", .kind.escape_ascii())]
    Length {
        /// Type of the message.
        kind: u8,
        /// Its length field.
        length: u32,
    },
    /// A body that does not parse.
    #[error("the server's message '{}' is malformed: {what}", .kind.escape_ascii())]
    Malformed {
        /// Type of the message.
        kind: u8,
        /// What is wrong.
        what: &'static str,
    },
    /// A type that this client does not know.
    #[error("the server sent a message of the unknown type '{}'", .0.escape_ascii())]
    Unknown(u8),
}

/// An error or a notice of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// Severity, such as `ERROR` or `FATAL`.
    pub severity: String,
    /// SQLSTATE: five characters.
    pub code: String,
    /// The message.
    pub message: String,
    /// More about it; may be empty.
    pub detail: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({})", self.severity, self.message, self.code)?;
        for more in [&self.detail, &self.hint] {
            if !more.is_empty() {
                write!(f, "; {more}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// What the server asks for, or says, while a client logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// The client is in.
    Ok,
    /// The password as it is.
    Cleartext,
    /// MD5 of password, user and this salt.
    Md5([u8; 4]),
    /// SASL: names of mechanisms.
    Sasl(Vec<String>),
    /// SASL: the server's next word.
    SaslContinue(Bytes),
    /// SASL: the server's last word.
    SaslFinal(Bytes),
    /// A method that this client does not speak: GSSAPI, SSPI, Kerberos.
    Other(u32),
}

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// About logging in.
    Authentication(Authentication),
    /// A setting that the server reports.
    Parameter {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// The key with which another connection could cancel; not used.
    KeyData,
    /// The server waits for the next command.
    Ready,
    /// Columns of the rows that follow, by name.
    RowDescription(Vec<String>),
    /// A row: text of each column, none for NULL.
    DataRow(Vec<Option<Bytes>>),
    /// A command ended.
    CommandComplete,
    /// An empty command ended.
    EmptyQuery,
    /// A command failed, or the connection does.
    Error(ServerError),
    /// A warning.
    Notice(ServerError),
    /// Data follows, to the client.
    CopyOut,
    /// Data follows, both ways.
    CopyBoth,
    /// Data.
    CopyData(Bytes),
    /// The end of the data.
    CopyDone,
    /// A newer protocol was asked for than the server speaks.
    NegotiateVersion,
}

/// Bytes of a connection, cut into messages. Memory is bounded by [`MAX_MESSAGE_BYTES`] and what is fed at once.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// Where the connection's bytes are added, in order.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next message, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// See [`WireError`]: the connection is of no more use.
    pub fn next_message(&mut self) -> Result<Option<Backend>, WireError> {
        let Some((&[kind, a, b, c, d], _)) = self.buffer.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        if !(4..=MAX_MESSAGE_BYTES).contains(&whole) {
            return Err(WireError::Length { kind, length });
        }
        if self.buffer.len() < 1 + whole {
            return Ok(None);
        }
        let mut message = self.buffer.split_to(1 + whole).freeze();
        message.advance(5);
        parse(kind, message).map(Some)
    }
}

struct Body {
    kind: u8,
    rest: Bytes,
}

impl Body {
    fn malformed(&self, what: &'static str) -> WireError {
        WireError::Malformed {
            kind: self.kind,
            what,
        }
    }

    fn take(&mut self, bytes: usize) -> Result<Bytes, WireError> {
        if self.rest.len() < bytes {
            return Err(self.malformed("it is cut short"));
        }
        Ok(self.rest.split_to(bytes))
    }

    fn byte(&mut self) -> Result<u8, WireError> {
        Ok(self.take(1)?.get_u8())
    }

    fn short(&mut self) -> Result<u16, WireError> {
        Ok(self.take(2)?.get_u16())
    }

    fn word(&mut self) -> Result<u32, WireError> {
        Ok(self.take(4)?.get_u32())
    }

    /// Text up to a zero byte. What is not UTF-8 is shown as such: it is for people.
    fn text(&mut self) -> Result<String, WireError> {
        let end = self.rest.iter().position(|&byte| byte == 0);
        let end = end.ok_or_else(|| self.malformed("a text without its end"))?;
        let text = self.rest.split_to(end);
        self.rest.advance(1);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn parse(kind: u8, rest: Bytes) -> Result<Backend, WireError> {
    let mut body = Body { kind, rest };
    Ok(match kind {
        b'R' => Backend::Authentication(authentication(&mut body)?),
        b'S' => Backend::Parameter {
            name: body.text()?,
            value: body.text()?,
        },
        b'K' => Backend::KeyData,
        b'Z' => Backend::Ready,
        b'T' => Backend::RowDescription(columns(&mut body)?),
        b'D' => Backend::DataRow(row(&mut body)?),
        b'C' => Backend::CommandComplete,
        b'I' => Backend::EmptyQuery,
        b'E' => Backend::Error(fields(&mut body)?),
        b'N' => Backend::Notice(fields(&mut body)?),
        b'H' => Backend::CopyOut,
        b'W' => Backend::CopyBoth,
        b'd' => Backend::CopyData(body.rest),
        b'c' => Backend::CopyDone,
        b'v' => Backend::NegotiateVersion,
        _ => return Err(WireError::Unknown(kind)),
    })
}

fn authentication(body: &mut Body) -> Result<Authentication, WireError> {
    Ok(match body.word()? {
        0 => Authentication::Ok,
        3 => Authentication::Cleartext,
        5 => {
            let salt = body.take(4)?;
            let salt: [u8; 4] = salt[..].try_into().map_err(|_| body.malformed("its salt"))?;
            Authentication::Md5(salt)
        }
        10 => {
            let mut names = Vec::new();
            while names.len() < MAX_COLUMNS {
                let name = body.text()?;
                if name.is_empty() {
                    break;
                }
                names.push(name);
            }
            Authentication::Sasl(names)
        }
        11 => Authentication::SaslContinue(std::mem::take(&mut body.rest)),
        12 => Authentication::SaslFinal(std::mem::take(&mut body.rest)),
        other => Authentication::Other(other),
    })
}

fn column_count(body: &mut Body) -> Result<usize, WireError> {
    let count = usize::from(body.short()?);
    match count <= MAX_COLUMNS {
        true => Ok(count),
        false => Err(body.malformed("it has too many columns")),
    }
}

fn columns(body: &mut Body) -> Result<Vec<String>, WireError> {
    let count = column_count(body)?;
    let mut names = Vec::with_capacity(count);
    for _ in 0..count {
        names.push(body.text()?);
        // Table, attribute, type, its size, its modifier, format.
        body.take(4 + 2 + 4 + 2 + 4 + 2)?;
    }
    Ok(names)
}

fn row(body: &mut Body) -> Result<Vec<Option<Bytes>>, WireError> {
    let count = column_count(body)?;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let length = body.word()?;
        values.push(if length == u32::MAX {
            None
        } else {
            Some(body.take(usize::try_from(length).unwrap_or(usize::MAX))?)
        });
    }
    Ok(values)
}

fn fields(body: &mut Body) -> Result<ServerError, WireError> {
    let mut error = ServerError::default();
    loop {
        match body.byte()? {
            0 => return Ok(error),
            // The form that is never translated.
            b'V' => error.severity = body.text()?,
            b'C' => error.code = body.text()?,
            b'M' => error.message = body.text()?,
            b'D' => error.detail = body.text()?,
            b'H' => error.hint = body.text()?,
            _ => drop(body.text()?),
        }
    }
}
