//! A connection to the server in replication mode.
//!
//! One owner sends commands and receives messages. [`Connection::receive`] may be dropped at any await without losing
//! anything, so it can be one branch of a `select!`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lakebed_pgwire::auth::{AuthError, Login};
use lakebed_pgwire::message::Authentication;
use lakebed_pgwire::target::Host;
use lakebed_pgwire::{Backend, Frames, ServerError, SslMode, Target, WireError, frontend};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::tls::{self, Secured, TlsError};

/// How long a connection, login included, may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the server may be silent in a command, or not take what is sent.
pub const SILENCE: Duration = Duration::from_secs(60);
/// Bytes read at once, at least.
const READ_BYTES: usize = 256 << 10;
/// Most rows that are kept of a command's answer; a replication command has a handful, and a row for each tablespace.
pub const MAX_ROWS: usize = 10_000;

/// Why a connection is of no more use, or a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The operating system refused.
    #[error("{what}")]
    Io {
        /// What was done.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// Not in time.
    #[error("{0}: no answer in time")]
    Late(&'static str),
    /// The server closed it.
    #[error("the server closed the connection")]
    Closed,
    /// The server said why not.
    #[error("the server said {0}")]
    Server(ServerError),
    /// It does not speak the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The login failed on this side.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A message that has no place here.
    #[error("the server sent something unexpected: {0}")]
    Unexpected(&'static str),
    /// TLS failed, or the server has none.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Not as its source: the message says all that there is.
impl From<ServerError> for ConnectionError {
    fn from(error: ServerError) -> ConnectionError {
        ConnectionError::Server(error)
    }
}

impl ConnectionError {
    /// The server's SQLSTATE, if the server spoke.
    pub fn code(&self) -> Option<&str> {
        match self {
            ConnectionError::Server(error) => Some(&error.code),
            _ => None,
        }
    }

    /// Whether somebody has to change the connection string or the server's configuration: a wrong password, a
    /// certificate that is not the one that is asked for.
    pub fn is_setup(&self) -> bool {
        match self {
            // Class 28: no such role, a wrong password, no line in pg_hba.conf. 42501: the role may not replicate.
            ConnectionError::Server(error) => error.code.starts_with("28") || error.code == "42501",
            ConnectionError::Auth(_) => true,
            ConnectionError::Tls(error) => !error.is_passing(),
            _ => false,
        }
    }
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> ConnectionError {
    move |source| ConnectionError::Io { what, source }
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Columns by name, and rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Names.
    pub columns: Vec<String>,
    /// Values.
    pub rows: Vec<Vec<Option<Bytes>>>,
}

impl Rows {
    /// The text in the first row of this column.
    pub fn text(&self, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|name| name == column)?;
        text_at(self.rows.first()?, at)
    }

    /// The texts of this column, where there are.
    pub fn texts(&self, column: &str) -> impl Iterator<Item = &str> {
        let at = self.columns.iter().position(|name| name == column);
        let rows = at
            .into_iter()
            .flat_map(|at| self.rows.iter().map(move |row| (row, at)));
        rows.filter_map(|(row, at)| text_at(row, at))
    }
}

fn text_at(row: &[Option<Bytes>], column: usize) -> Option<&str> {
    std::str::from_utf8(row.get(column)?.as_ref()?).ok()
}

/// See the module header.
pub struct Connection {
    socket: Box<dyn Socket>,
    frames: Frames,
    out: BytesMut,
    parameters: BTreeMap<String, String>,
}

impl Connection {
    /// Connects and logs in as a standby of this name.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub async fn open(target: &Target, name: &str) -> Result<Connection, ConnectionError> {
        tokio::time::timeout(CONNECT, async {
            let (socket, end_point) = connect(target).await?;
            let mut connection = Connection {
                socket,
                frames: Frames::default(),
                out: BytesMut::new(),
                parameters: BTreeMap::new(),
            };
            connection.log_in(target, name, end_point).await?;
            Ok(connection)
        })
        .await
        .unwrap_or(Err(ConnectionError::Late("connecting")))
    }

    async fn log_in(
        &mut self,
        target: &Target,
        name: &str,
        end_point: Option<Vec<u8>>,
    ) -> Result<(), ConnectionError> {
        let parameters = [
            ("user", target.user.as_str()),
            ("replication", "true"),
            ("application_name", name),
        ];
        frontend::startup(&mut self.out, &parameters);
        let mut login = Login::new(
            &target.user,
            target.password.as_deref(),
            target.ssl.binding,
            end_point,
        );
        let mut is_in = false;
        loop {
            self.flush().await?;
            match self.receive().await? {
                Backend::Authentication(request) => {
                    is_in = login.handle(&request, &mut self.out)? || matches!(request, Authentication::Ok);
                }
                Backend::Ready if is_in => return Ok(()),
                Backend::KeyData | Backend::NegotiateVersion => {}
                _ => return Err(ConnectionError::Unexpected("in the login")),
            }
        }
    }

    /// A setting that the server reported.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The next message. Notices and settings are taken care of; an error of the server is one here.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub async fn receive(&mut self) -> Result<Backend, ConnectionError> {
        loop {
            match self.frames.next_message()? {
                Some(Backend::Parameter { name, value }) => {
                    // What is reported is a fixed list of a dozen settings; another server's list has its bound.
                    if self.parameters.len() < MAX_ROWS {
                        self.parameters.insert(name, value);
                    }
                }
                Some(Backend::Notice(notice)) => tracing::info!(%notice, "the server says"),
                Some(Backend::Error(error)) => return Err(error.into()),
                Some(message) => return Ok(message),
                None => {
                    let buffer = self.frames.buffer();
                    buffer.reserve(READ_BYTES);
                    let read = self.socket.read_buf(buffer).await;
                    if read.map_err(io("reading from the server"))? == 0 {
                        return Err(ConnectionError::Closed);
                    }
                }
            }
        }
    }

    /// As [`Connection::receive`], with a bound on the server's silence.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub async fn receive_soon(&mut self, what: &'static str) -> Result<Backend, ConnectionError> {
        let received = tokio::time::timeout(SILENCE, self.receive()).await;
        received.unwrap_or(Err(ConnectionError::Late(what)))
    }

    async fn flush(&mut self) -> Result<(), ConnectionError> {
        let sending = async {
            self.socket.write_all_buf(&mut self.out).await?;
            self.socket.flush().await
        };
        let sent = tokio::time::timeout(SILENCE, sending).await;
        let sent = sent.map_err(|_| ConnectionError::Late("sending to the server"))?;
        sent.map_err(io("sending to the server"))
    }

    /// Sends a command without waiting for anything.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub async fn send_command(&mut self, command: &str) -> Result<(), ConnectionError> {
        frontend::query(&mut self.out, command);
        self.flush().await
    }

    /// Runs a command to its end; the last rows that it answered.
    ///
    /// # Errors
    /// See [`ConnectionError`]; after an error of the server the connection can be used on.
    pub async fn query(&mut self, command: &str) -> Result<Rows, ConnectionError> {
        self.send_command(command).await?;
        let mut rows = Rows::default();
        let mut failed = None;
        loop {
            match self.receive_soon("a command").await {
                Ok(Backend::Ready) => return failed.map_or(Ok(rows), Err),
                Ok(Backend::RowDescription(columns)) => {
                    rows = Rows {
                        columns,
                        ..Rows::default()
                    }
                }
                Ok(Backend::DataRow(row)) if rows.rows.len() < MAX_ROWS => rows.rows.push(row),
                Ok(Backend::CommandComplete | Backend::EmptyQuery) => {}
                Ok(_) => return Err(ConnectionError::Unexpected("in the answer to a command")),
                Err(error @ ConnectionError::Server(_)) if failed.is_none() => failed = Some(error),
                Err(error) => return Err(failed.unwrap_or(error)),
            }
        }
    }

    /// Value of a setting.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub async fn show(&mut self, setting: &'static str) -> Result<String, ConnectionError> {
        let rows = self.query(&format!("SHOW {setting}")).await?;
        let value = rows.text(setting).map(str::to_owned);
        value.ok_or(ConnectionError::Unexpected("a setting without a value"))
    }

    /// Runs a command that begins streaming in both directions.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub async fn stream(&mut self, command: &str) -> Result<(), ConnectionError> {
        self.send_command(command).await?;
        match self.receive_soon("starting to stream").await? {
            Backend::CopyBoth => Ok(()),
            _ => Err(ConnectionError::Unexpected("in place of a stream")),
        }
    }

    /// Sends data while streaming.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub async fn send_data(&mut self, data: &[u8]) -> Result<(), ConnectionError> {
        frontend::copy_data(&mut self.out, data);
        self.flush().await
    }

    /// Ends streaming and the session, as far as the server takes it.
    pub async fn close(mut self) {
        frontend::copy_done(&mut self.out);
        frontend::terminate(&mut self.out);
        if let Err(error) = self.flush().await {
            tracing::debug!(%error, "the server did not hear the end of the session");
        }
    }
}

/// A socket, and what ties a login to its TLS.
type Connected = (Box<dyn Socket>, Option<Vec<u8>>);

async fn connect(target: &Target) -> Result<Connected, ConnectionError> {
    match &target.host {
        // As libpq: sslmode does not count for unix sockets.
        Host::Unix(directory) => {
            let path = directory.join(format!(".s.PGSQL.{}", target.port));
            let socket = UnixStream::connect(path)
                .await
                .map_err(io("connecting to the server"))?;
            Ok((Box::new(socket), None))
        }
        Host::Tcp(host) => {
            let socket = TcpStream::connect((host.as_str(), target.port)).await;
            let mut socket = socket.map_err(io("connecting to the server"))?;
            socket.set_nodelay(true).map_err(io("TCP_NODELAY"))?;
            if target.ssl.mode != SslMode::Disable {
                if speaks_tls(&mut socket).await? {
                    let Secured { stream, end_point } = tls::secure(socket, host, &target.ssl).await?;
                    return Ok((Box::new(stream), end_point));
                }
                if target.ssl.mode > SslMode::Prefer {
                    return Err(TlsError::Refused.into());
                }
            }
            Ok((Box::new(socket), None))
        }
    }
}

/// Asks the server. Nothing but its answer is read: what somebody in between adds to it ends in the handshake.
async fn speaks_tls(socket: &mut TcpStream) -> Result<bool, ConnectionError> {
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    let asked = socket.write_all_buf(&mut out).await;
    asked.map_err(io("sending to the server"))?;
    match socket.read_u8().await.map_err(io("reading from the server"))? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(ConnectionError::Unexpected("in answer to the question for TLS")),
    }
}
