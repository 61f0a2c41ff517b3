//! A compute's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How WAL goes to safekeepers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireWal {
    /// Compressed where the link is slow, and in a backlog.
    #[default]
    Auto,
    /// In as few bytes as possible.
    Compact,
    /// As Postgres writes it.
    Plain,
}

impl std::fmt::Display for WireWal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WireWal::Auto => "auto",
            WireWal::Compact => "compact",
            WireWal::Plain => "plain",
        })
    }
}

impl std::str::FromStr for WireWal {
    type Err = String;

    fn from_str(name: &str) -> Result<WireWal, String> {
        match name {
            "auto" => Ok(WireWal::Auto),
            "compact" => Ok(WireWal::Compact),
            "plain" => Ok(WireWal::Plain),
            _ => Err("it is one of auto, compact and plain".to_owned()),
        }
    }
}

/// What the proposer of a branch is told, whoever writes the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProposerConfig {
    /// Without a quorum for this long the term is given up, in milliseconds.
    pub lease_ms: u64,
    /// A safekeeper hears from the proposer at least this often, in milliseconds.
    pub heartbeat_ms: u64,
    /// How WAL goes to safekeepers that understand more than plain bytes.
    pub wire_wal: WireWal,
}

/// Everything that a compute is told at its start, except the branch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeConfig {
    /// Directory of this compute: data directory, sockets, log of Postgres. Nothing in it outlives the process that
    /// made it; it is built anew at each start.
    pub dir: PathBuf,
    /// Directory of the programs of Postgres, of the major version that made the branch.
    #[serde(default = "default_pg_bin")]
    pub pg_bin: PathBuf,
    /// The library `liblakebed_compute_shim.so`; copied into `dir`, where Postgres can read it.
    pub shim: PathBuf,
    /// What Postgres listens on (`listen_addresses`).
    #[serde(default = "default_pg_listen")]
    pub pg_listen: String,
    /// Port of Postgres.
    pub pg_port: u16,
    /// Address of the admin HTTP service.
    pub admin_listen: SocketAddr,
    /// Who Postgres runs as when this process is root, which Postgres refuses.
    #[serde(default = "default_run_as")]
    pub run_as: String,
    /// Without a quorum for this long Postgres is stopped, in milliseconds.
    #[serde(default = "default_lease_ms")]
    pub lease_ms: u64,
    /// A safekeeper hears from this compute at least this often, in milliseconds.
    #[serde(default = "default_heartbeat_ms")]
    pub heartbeat_ms: u64,
    /// WAL kept in memory for safekeepers that lag, in bytes. Once the quorum itself lags this far, Postgres waits.
    #[serde(default = "default_local_wal_bytes")]
    pub local_wal_bytes: usize,
    /// How WAL goes to safekeepers that understand more than plain bytes.
    #[serde(default)]
    pub wire_wal: WireWal,
    /// More settings of Postgres, as on its command line: `shared_buffers=1GB`. Those that safety needs are refused.
    #[serde(default)]
    pub settings: Vec<String>,
}

fn default_pg_bin() -> PathBuf {
    PathBuf::from("/usr/lib/postgresql/15/bin")
}

fn default_pg_listen() -> String {
    "127.0.0.1".to_owned()
}

fn default_run_as() -> String {
    "postgres".to_owned()
}

fn default_lease_ms() -> u64 {
    10_000
}

fn default_heartbeat_ms() -> u64 {
    250
}

fn default_local_wal_bytes() -> usize {
    256 << 20
}

impl ComputeConfig {
    /// Whether Postgres can be started in the directory: the dynamic linker takes the list of libraries to preload apart at spaces
    /// and colons, and would start Postgres without ours; Postgres takes its list of socket directories apart at commas.
    ///
    /// # Errors
    /// It cannot; the text names the directory.
    pub fn check_directory(&self) -> anyhow::Result<()> {
        let text = self.dir.to_string_lossy();
        match separator(&text) {
            None => Ok(()),
            Some(c) => anyhow::bail!(
                "a compute cannot run in {text:?}: {c:?} in its path separates one path from the next in lists that Postgres and \
                 the dynamic linker are given; choose another directory"
            ),
        }
    }

    /// What its proposer is told.
    pub fn proposer(&self) -> ProposerConfig {
        ProposerConfig {
            lease_ms: self.lease_ms,
            heartbeat_ms: self.heartbeat_ms,
            wire_wal: self.wire_wal,
        }
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The sidecar's socket, where the shim asks.
    pub fn shim_socket(&self) -> PathBuf {
        self.dir.join("shim.sock")
    }

    /// The copy of the library that is preloaded.
    pub fn shim_copy(&self) -> PathBuf {
        self.dir.join("shim.so")
    }

    /// The log of Postgres.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }
}

/// The first character that ends a path in a list of paths.
fn separator(path: &str) -> Option<char> {
    let separates = |c: &char| c.is_whitespace() || matches!(c, ':' | ',' | '"');
    path.chars().find(separates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_must_not_come_apart_in_a_list() {
        for (path, expected) in [
            ("/var/lib/lakebed/compute-1", None),
            ("/home/a b/compute", Some(' ')),
            ("/srv/c:1", Some(':')),
            ("/srv/a,b", Some(',')),
            ("/srv/\"c\"", Some('"')),
        ] {
            assert_eq!(separator(path), expected, "{path}");
        }
    }
}
