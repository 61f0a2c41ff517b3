//! Connection strings of Postgres: `postgresql://[user[:password]@][host][:port][/database][?name=value&…]`.

use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// How the connection is protected, as in libpq; each asks for more than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never with TLS.
    Disable,
    /// With TLS if the server speaks it; whose certificate it is, is not checked.
    Prefer,
    /// With TLS or not at all; whose certificate it is, is not checked.
    Require,
    /// With a certificate that a trusted authority has signed, for whatever name.
    VerifyCa,
    /// With a certificate that a trusted authority has signed for this host.
    VerifyFull,
}

/// Whether a login with SCRAM is tied to the TLS connection ([`crate::channel_binding`]), as in libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Never.
    Disable,
    /// If the server can.
    Prefer,
    /// Always: another login is refused.
    Require,
}

/// Which TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssl {
    /// Whether, and what is checked.
    pub mode: SslMode,
    /// File (PEM) of the authorities that are trusted; none: those that the operating system trusts.
    pub root: Option<PathBuf>,
    /// Files (PEM) of the client's own certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// Whether the login is tied to it.
    pub binding: Binding,
}

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// Directory of a unix socket.
    Unix(PathBuf),
}

/// A server and who connects to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub host: Host,
    /// Its port, also with a unix socket.
    pub port: u16,
    /// Who.
    pub user: String,
    /// What the server may ask for.
    pub password: Option<String>,
    /// Whether with TLS, and which.
    pub ssl: Ssl,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_string())
    }
}

/// Without the password.
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Tcp(host) => write!(f, "postgresql://{}@{host}:{}", self.user, self.port),
            Host::Unix(path) => write!(f, "postgresql://{}@[{}]:{}", self.user, path.display(), self.port),
        }
    }
}

/// Why a connection string was refused. The string itself is not shown: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection string is not postgresql://user:password@host:port/?sslmode=…: {0}")]
pub struct TargetError(String);

fn refused(what: impl Into<String>) -> TargetError {
    TargetError(what.into())
}

fn decode(text: &str) -> Result<String, TargetError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(|text| text.into_owned())
        .map_err(|_| refused("a part of it is not UTF-8"))
}

fn ssl_mode(name: &str) -> Result<SslMode, TargetError> {
    match name {
        "disable" => Ok(SslMode::Disable),
        "allow" | "prefer" => Ok(SslMode::Prefer),
        "require" => Ok(SslMode::Require),
        "verify-ca" => Ok(SslMode::VerifyCa),
        "verify-full" => Ok(SslMode::VerifyFull),
        other => Err(refused(format!(
            "sslmode={other} is not known; disable, prefer, require, verify-ca and verify-full are"
        ))),
    }
}

fn binding(name: &str) -> Result<Binding, TargetError> {
    match name {
        "disable" => Ok(Binding::Disable),
        "prefer" => Ok(Binding::Prefer),
        "require" => Ok(Binding::Require),
        other => Err(refused(format!(
            "channel_binding={other} is not known; disable, prefer and require are"
        ))),
    }
}

/// What the connection string says of TLS, as it comes.
#[derive(Default)]
struct SslWords {
    mode: Option<SslMode>,
    root: Option<String>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    binding: Option<Binding>,
}

impl SslWords {
    fn together(self) -> Result<Ssl, TargetError> {
        // As libpq: the system's authorities sign for everybody, so the name has to be checked.
        let system = self.root.as_deref() == Some("system");
        let mut mode = self.mode.unwrap_or(match system {
            true => SslMode::VerifyFull,
            false => SslMode::Prefer,
        });
        if system && mode < SslMode::VerifyFull {
            return Err(refused("sslrootcert=system needs sslmode=verify-full"));
        }
        if mode == SslMode::VerifyCa && self.root.is_none() {
            return Err(refused(
                "sslmode=verify-ca needs sslrootcert: the system's authorities sign for everybody",
            ));
        }
        // Whoever names authorities wants them to be asked, says libpq.
        if self.root.is_some() && mode == SslMode::Require {
            mode = SslMode::VerifyCa;
        }
        let own = match (self.certificate, self.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => return Err(refused("sslcert and sslkey go together")),
        };
        Ok(Ssl {
            mode,
            root: self.root.filter(|_| !system).map(PathBuf::from),
            own,
            binding: self.binding.unwrap_or(Binding::Prefer),
        })
    }
}

/// `host:port`, `[::1]:port`, or either part alone.
fn address(text: &str) -> Result<(&str, Option<u16>), TargetError> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if text.contains(',') {
        return Err(refused("there can be one host only"));
    }
    let port = port.map(|port| port.parse().map_err(|_| refused("its port is no port")));
    Ok((host, port.transpose()?))
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        let rest = ["postgresql://", "postgres://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .ok_or_else(|| refused("it begins otherwise"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
        let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match user.split_once(':') {
            Some((user, password)) => (user, Some(decode(password)?)),
            None => (user, None),
        };
        let (host, port) = address(place)?;
        let mut target = Target {
            host: Host::Tcp(decode(host)?),
            port: port.unwrap_or(5432),
            user: decode(user)?,
            password,
            ssl: SslWords::default().together()?,
        };
        let mut ssl = SslWords::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            match name {
                "host" => target.host = Host::Tcp(value),
                "port" => target.port = value.parse().map_err(|_| refused("its port is no port"))?,
                "user" => target.user = value,
                "password" => target.password = Some(value),
                "sslmode" => ssl.mode = Some(ssl_mode(&value)?),
                "sslrootcert" => ssl.root = Some(value),
                "sslcert" => ssl.certificate = Some(value.into()),
                "sslkey" => ssl.key = Some(value.into()),
                "channel_binding" => ssl.binding = Some(binding(&value)?),
                other => return Err(refused(format!("`{other}` in it is not known"))),
            }
        }
        if let Host::Tcp(host) = &target.host {
            if host.starts_with('/') {
                target.host = Host::Unix(host.into());
            } else if host.is_empty() {
                target.host = Host::Tcp("127.0.0.1".to_owned());
            }
        }
        if target.user.is_empty() {
            return Err(refused("it names no user"));
        }
        target.ssl = ssl.together()?;
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ones_are_taken_apart() {
        let full: Target = "postgresql://me:p%40ss@db.example:5433/x?sslmode=require"
            .parse()
            .unwrap();
        assert_eq!(full.host, Host::Tcp("db.example".to_owned()));
        assert_eq!(
            (full.port, full.user.as_str(), full.ssl.mode),
            (5433, "me", SslMode::Require)
        );
        assert_eq!(full.password.as_deref(), Some("p@ss"));
        assert!(!format!("{full} {full:?}").contains("p@ss"));
        let v6: Target = "postgres://me@[::1]:5433".parse().unwrap();
        assert_eq!((v6.host, v6.port), (Host::Tcp("::1".to_owned()), 5433));
        let socket: Target = "postgresql://me@/?host=/run/pg&port=5".parse().unwrap();
        assert_eq!((socket.host, socket.port), (Host::Unix("/run/pg".into()), 5));
    }

    #[test]
    fn tls_is_chosen_as_libpq_does() {
        let of = |query: &str| {
            let target: Target = format!("postgresql://me@h/?{query}").parse().unwrap();
            target.ssl
        };
        assert_eq!(of("").mode, SslMode::Prefer);
        assert_eq!(of("sslrootcert=system").mode, SslMode::VerifyFull);
        assert_eq!(of("sslrootcert=system").root, None);
        let named = of("sslmode=require&sslrootcert=/ca%20file.pem&channel_binding=require");
        assert_eq!((named.mode, named.binding), (SslMode::VerifyCa, Binding::Require));
        assert_eq!(named.root, Some("/ca file.pem".into()));
        let own = of("sslcert=/c&sslkey=/k").own;
        assert_eq!(own, Some(("/c".into(), "/k".into())));
    }

    #[test]
    fn bad_ones_are_refused_without_their_password() {
        for bad in [
            "mysql://me:secret@h",
            "postgresql://h:5432/",
            "postgresql://me:secret@h:x/",
            "postgresql://me:secret@a,b/",
            "postgresql://me:secret@h/?sslmode=verify",
            "postgresql://me:secret@h/?sslmode=require&sslrootcert=system",
            "postgresql://me:secret@h/?sslmode=verify-ca",
            "postgresql://me:secret@h/?sslcert=/c",
            "postgresql://me:secret@h/?channel_binding=maybe",
            "postgresql://me:secret@h/?target_session_attrs=any",
            "postgresql://me:%ff@h/",
        ] {
            let error = bad.parse::<Target>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
