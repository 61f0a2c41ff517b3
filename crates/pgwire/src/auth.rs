//! Answers to what the server asks for while a client logs in.
//!
//! Trust, cleartext, MD5 and SCRAM-SHA-256. With SCRAM the server has to prove that it knows the password too: a login
//! without that proof is refused, so that nobody in between gets WAL positions acknowledged. Within TLS it is tied to the
//! connection where the server offers that ([`crate::channel_binding`]).

use bytes::{Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};

use crate::message::Authentication;
use crate::{Binding, frontend};

/// Most rounds of hashing that a server may ask for; Postgres's default is 4096, and each costs the client time.
const MAX_ITERATIONS: u32 = 1_000_000;

/// Why a login failed on this side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// A password is asked for and none was given.
    #[error("the server asks for a password: give it in the connection string, or in PGPASSWORD")]
    NoPassword,
    /// A method that is not spoken here.
    #[error("the server asks for {0}, which is not supported; trust, password, md5 and scram-sha-256 are")]
    Method(String),
    /// The connection string asks for a login that is tied to the TLS connection.
    #[error("channel_binding=require: {0}")]
    NoBinding(&'static str),
    /// The exchange is not one.
    #[error("the server's part of SCRAM is wrong: {0}")]
    Scram(String),
}

/// One login.
pub struct Login {
    user: String,
    password: Option<String>,
    binding: Binding,
    /// Of the TLS connection that this login runs in.
    end_point: Option<Vec<u8>>,
    scram: Scram,
}

enum Scram {
    None,
    Running(Box<ScramSha256>),
    /// The server has proved itself.
    Done,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Login {
    /// A login that has not begun. `end_point`: what [`crate::channel_binding::server_end_point`] tells of the TLS
    /// connection that it runs in.
    pub fn new(user: &str, password: Option<&str>, binding: Binding, end_point: Option<Vec<u8>>) -> Login {
        Login {
            user: user.to_owned(),
            password: password.map(str::to_owned),
            binding,
            end_point: end_point.filter(|_| binding != Binding::Disable),
            scram: Scram::None,
        }
    }

    /// The mechanism to use of those that the server offers.
    fn mechanism(&self, offered: &[String]) -> Result<(&'static str, ChannelBinding), AuthError> {
        let offers = |mechanism: &str| offered.iter().any(|name| name == mechanism);
        match &self.end_point {
            Some(end_point) if offers(SCRAM_SHA_256_PLUS) => Ok((
                SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(end_point.clone()),
            )),
            _ if self.binding == Binding::Require => Err(AuthError::NoBinding(match self.end_point {
                Some(_) => "the server does not offer it",
                None => "the connection has no TLS, or its certificate allows none",
            })),
            _ if !offers(SCRAM_SHA_256) => {
                Err(AuthError::Method(format!("SASL with {}", offered.join(", "))))
            }
            // The server compares this with what it offered: nobody in between can have taken the offer away.
            Some(_) => Ok((SCRAM_SHA_256, ChannelBinding::unrequested())),
            None => Ok((SCRAM_SHA_256, ChannelBinding::unsupported())),
        }
    }

    /// Answers a request of the server into `out`. True once the client is in.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub fn handle(&mut self, request: &Authentication, out: &mut BytesMut) -> Result<bool, AuthError> {
        let password = || self.password.as_deref().ok_or(AuthError::NoPassword);
        if self.binding == Binding::Require {
            match request {
                Authentication::Ok if !matches!(self.scram, Scram::Done) => {
                    return Err(AuthError::NoBinding("the server wants no SCRAM"));
                }
                Authentication::Cleartext | Authentication::Md5(_) => {
                    return Err(AuthError::NoBinding("the server asks for another login"));
                }
                _ => {}
            }
        }
        match request {
            Authentication::Ok => {
                if matches!(self.scram, Scram::Running(_)) {
                    return Err(AuthError::Scram(
                        "it ended before the server proved itself".to_owned(),
                    ));
                }
                return Ok(true);
            }
            Authentication::Cleartext => frontend::password(out, password()?),
            Authentication::Md5(salt) => {
                let hash = md5_hash(self.user.as_bytes(), password()?.as_bytes(), *salt);
                frontend::password(out, &hash);
            }
            Authentication::Sasl(mechanisms) => {
                let (mechanism, binding) = self.mechanism(mechanisms)?;
                let scram = ScramSha256::new(password()?.as_bytes(), binding);
                frontend::sasl_initial(out, mechanism, scram.message());
                self.scram = Scram::Running(Box::new(scram));
            }
            Authentication::SaslContinue(data) => {
                let Scram::Running(scram) = &mut self.scram else {
                    return Err(AuthError::Scram("it continues what was not begun".to_owned()));
                };
                check_iterations(data)?;
                scram
                    .update(data)
                    .map_err(|error| AuthError::Scram(error.to_string()))?;
                frontend::sasl_response(out, scram.message());
            }
            Authentication::SaslFinal(data) => {
                let Scram::Running(scram) = &mut self.scram else {
                    return Err(AuthError::Scram("it ends what was not begun".to_owned()));
                };
                scram
                    .finish(data)
                    .map_err(|error| AuthError::Scram(error.to_string()))?;
                self.scram = Scram::Done;
            }
            Authentication::Other(method) => return Err(AuthError::Method(method_name(*method))),
        }
        Ok(false)
    }
}

fn method_name(method: u32) -> String {
    match method {
        2 => "Kerberos".to_owned(),
        7 | 8 => "GSSAPI".to_owned(),
        9 => "SSPI".to_owned(),
        other => format!("authentication method {other}"),
    }
}

/// `r=nonce,s=salt,i=iterations`.
fn check_iterations(data: &Bytes) -> Result<(), AuthError> {
    let text = String::from_utf8_lossy(data);
    let iterations = text.split(',').find_map(|part| part.strip_prefix("i="));
    match iterations.and_then(|number| number.parse::<u32>().ok()) {
        Some(1..=MAX_ITERATIONS) => Ok(()),
        _ => Err(AuthError::Scram(format!(
            "its number of iterations is not in 1 to {MAX_ITERATIONS}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_prove_itself_is_not_believed() {
        let mut login = Login::new("u", Some("p"), Binding::Prefer, None);
        let mut out = BytesMut::new();
        let sasl = Authentication::Sasl(vec!["SCRAM-SHA-256-PLUS".into(), "SCRAM-SHA-256".into()]);
        assert_eq!(login.handle(&sasl, &mut out), Ok(false));
        assert!(matches!(
            login.handle(&Authentication::Ok, &mut out),
            Err(AuthError::Scram(_))
        ));
        let costly = Authentication::SaslContinue(Bytes::from_static(b"r=x,s=eA==,i=4000000000"));
        assert!(
            matches!(login.handle(&costly, &mut out), Err(AuthError::Scram(text)) if text.contains("iterations"))
        );
    }

    #[test]
    fn a_login_is_tied_to_its_connection_where_both_can() {
        let plus = || vec![SCRAM_SHA_256.to_owned(), SCRAM_SHA_256_PLUS.to_owned()];
        let plain = || vec![SCRAM_SHA_256.to_owned()];
        let end_point = || Some(vec![7; 32]);
        // (asked for, TLS, offered) -> what the client's first message begins with
        let table = [
            (
                Binding::Prefer,
                end_point(),
                plus(),
                Some("p=tls-server-end-point,,"),
            ),
            (
                Binding::Require,
                end_point(),
                plus(),
                Some("p=tls-server-end-point,,"),
            ),
            (Binding::Prefer, end_point(), plain(), Some("y,,")),
            (Binding::Prefer, None, plus(), Some("n,,")),
            (Binding::Disable, end_point(), plus(), Some("n,,")),
            (Binding::Require, end_point(), plain(), None),
            (Binding::Require, None, plus(), None),
        ];
        for (binding, end_point, offered, expected) in table {
            let what = format!("{binding:?} {end_point:?} {offered:?}");
            let mut login = Login::new("u", Some("p"), binding, end_point);
            let mut out = BytesMut::new();
            let answered = login.handle(&Authentication::Sasl(offered), &mut out);
            assert_eq!(answered.is_ok(), expected.is_some(), "{what}");
            let sent = String::from_utf8_lossy(&out).into_owned();
            assert!(sent.contains(expected.unwrap_or_default()), "{what}: {sent}");
        }
        // Anything else would let somebody in between choose a login without it.
        for asked in [
            Authentication::Ok,
            Authentication::Cleartext,
            Authentication::Md5([0; 4]),
        ] {
            let mut login = Login::new("u", Some("p"), Binding::Require, end_point());
            let refused = login.handle(&asked, &mut BytesMut::new());
            assert!(matches!(refused, Err(AuthError::NoBinding(_))), "{asked:?}");
        }
    }

    #[test]
    fn each_method_gets_its_answer_or_a_reason() {
        let mut out = BytesMut::new();
        let mut login = Login::new("md5_user", Some("password"), Binding::Prefer, None);
        login
            .handle(&Authentication::Md5([0x2a, 0x3d, 0x8f, 0xe0]), &mut out)
            .unwrap();
        assert_eq!(&out[5..out.len() - 1], b"md562af4dd09bbb41884907a838a3233294");
        let mut without = Login::new("u", None, Binding::Prefer, None);
        for asked in [Authentication::Cleartext, Authentication::Md5([0; 4])] {
            assert_eq!(without.handle(&asked, &mut out), Err(AuthError::NoPassword));
        }
        let gss = without.handle(&Authentication::Other(7), &mut out);
        assert_eq!(gss, Err(AuthError::Method("GSSAPI".to_owned())));
        assert_eq!(without.handle(&Authentication::Ok, &mut out), Ok(true));
    }
}
