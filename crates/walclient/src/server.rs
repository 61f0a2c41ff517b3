//! What has to be known of the server, and the slot that keeps its WAL.

use anyhow::{Context, bail};
use lakebed_pgwire::Target;
use lakebed_types::{Lsn, PgVersion};
use lakebed_wal::page::WalFormat;

use crate::connection::Connection;

/// SQLSTATE of what exists already.
const DUPLICATE_OBJECT: &str = "42710";

/// A server that can be protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// The form of its WAL, with its identity.
    pub format: WalFormat,
    /// End of what it has flushed.
    pub flush: Lsn,
}

/// Why a server is not the right one: trying again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WrongServer(pub String);

impl Server {
    /// Asks the server.
    ///
    /// # Errors
    /// It does not answer, or is one that cannot be protected ([`WrongServer`]).
    pub async fn look(connection: &mut Connection) -> anyhow::Result<Server> {
        let version = connection.parameter("server_version").unwrap_or_default();
        let major = version
            .split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap_or_default();
        let version = major
            .parse::<u32>()
            .ok()
            .and_then(|major| PgVersion::try_from(major).ok());
        let version = version.ok_or_else(|| {
            WrongServer(format!(
                "the server is Postgres {major}; 15 to 18 can be protected"
            ))
        })?;
        if connection.parameter("in_hot_standby") == Some("on") {
            bail!(WrongServer(
                "the server is itself a standby: connect to its primary".to_owned()
            ));
        }
        let rows = connection.query("IDENTIFY_SYSTEM").await?;
        let system_identifier = rows.text("systemid").and_then(|text| text.parse().ok());
        let timeline = rows.text("timeline").and_then(|text| text.parse().ok());
        let flush = rows.text("xlogpos").and_then(|text| text.parse().ok());
        let segment = connection.show("wal_segment_size").await?;
        let format = WalFormat {
            version,
            timeline: timeline.context("IDENTIFY_SYSTEM told no timeline")?,
            system_identifier: system_identifier.context("IDENTIFY_SYSTEM told no system identifier")?,
            segment_bytes: bytes(&segment).with_context(|| format!("wal_segment_size is `{segment}`"))?,
        };
        if format.timeline != 1 {
            bail!(WrongServer(format!(
                "the server is on WAL timeline {}: it was promoted, or restored, once. Only servers that never were can \
                 be protected: move it into a fresh cluster (pg_dump, or logical replication) first",
                format.timeline
            )));
        }
        let flush = flush.context("IDENTIFY_SYSTEM told no WAL position")?;
        Ok(Server { format, flush })
    }

    /// Connects to the server and asks it.
    ///
    /// # Errors
    /// As [`Server::look`].
    pub async fn connect(target: &Target, name: &str) -> anyhow::Result<(Connection, Server)> {
        let opened = Connection::open(target, name).await;
        let mut connection = opened.with_context(|| format!("{target}"))?;
        let server = Server::look(&mut connection)
            .await
            .with_context(|| format!("{target}"))?;
        Ok((connection, server))
    }
}

/// `16MB`, `1GB`: how Postgres shows a number of bytes.
fn bytes(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(unit)
}

/// Makes the slot that keeps WAL for this client, unless it is there.
///
/// # Errors
/// The server has no place for a slot, or the user no right.
pub async fn make_slot(connection: &mut Connection, slot: &str) -> anyhow::Result<()> {
    let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" PHYSICAL RESERVE_WAL");
    match connection.query(&command).await {
        Ok(_) => tracing::info!(slot, "replication slot created"),
        Err(error) if error.code() == Some(DUPLICATE_OBJECT) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("creating the replication slot {slot}"));
        }
    }
    Ok(())
}

/// Whether the slot is there, with WAL kept.
///
/// # Errors
/// The server does not answer.
pub async fn has_slot(connection: &mut Connection, slot: &str) -> anyhow::Result<bool> {
    let rows = connection
        .query(&format!("READ_REPLICATION_SLOT \"{slot}\""))
        .await?;
    Ok(rows.text("slot_type") == Some("physical") && rows.text("restart_lsn").is_some())
}

/// A name of a slot made of the branch's: lower-case letters, digits and underscores, at most 63.
pub fn slot_name(tenant: &str, branch: &str) -> String {
    let plain = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '_',
    };
    format!("lakebed_{tenant}_{branch}")
        .chars()
        .map(plain)
        .take(63)
        .collect()
}

/// Whether a value of `synchronous_standby_names` names this standby, or all.
pub fn is_named(synchronous_standby_names: &str, name: &str) -> bool {
    let separators = |c: char| c == ',' || c == '(' || c == ')' || c.is_whitespace();
    let names = synchronous_standby_names.split(separators);
    names
        .map(|word| word.trim_matches('"'))
        .any(|word| word == "*" || word.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_slots_and_names_are_understood() {
        for (text, expected) in [
            ("16MB", Some(16 << 20)),
            ("1GB", Some(1 << 30)),
            ("8GB", None),
            ("x", None),
            ("1TB", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
        assert_eq!(slot_name("Acme-1", "main"), "lakebed_acme_1_main");
        assert_eq!(slot_name(&"x".repeat(80), "main").len(), 63);
        for (names, named) in [
            ("lakebed", true),
            ("*", true),
            ("ANY 1 (other, \"lakebed\")", true),
            ("FIRST 2 (a,Lakebed)", true),
            ("", false),
            ("lakebed2", false),
        ] {
            assert_eq!(is_named(names, "lakebed"), named, "{names}");
        }
    }
}
