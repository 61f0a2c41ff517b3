//! What an operator tells a safekeeper, in TOML.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::backup::BackupConfig;
use crate::scrub::ScrubConfig;

/// Configuration of a safekeeper.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SafekeeperConfig {
    /// Directory of everything that this safekeeper keeps. One process at a time.
    pub data_dir: PathBuf,
    /// Address of the gRPC service; port 0 takes any free one.
    pub listen: SocketAddr,
    /// This node's number, as registered with the controller. It never changes for a data directory.
    pub node_id: u64,
    /// Address of the HTTP pages for operators, served by the process that embeds the safekeeper.
    #[serde(default)]
    pub admin_listen: Option<SocketAddr>,
    /// Where WAL goes in object storage. Without it all WAL stays here, for ever.
    #[serde(default)]
    pub backup: Option<BackupConfig>,
    /// How WAL on disk is looked through for damage.
    #[serde(default)]
    pub scrub: ScrubConfig,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_is_read_and_an_unknown_key_is_named() {
        let text = "data_dir = '/var/lib/lakebed'\nlisten = '127.0.0.1:7001'\nnode_id = 3\n";
        let config: SafekeeperConfig = toml::from_str(text).unwrap();
        assert_eq!((config.node_id, config.admin_listen), (3, None));
        let backup = format!("{text}[backup]\nstore = 's3://wal'\n");
        let backup = toml::from_str::<SafekeeperConfig>(&backup)
            .unwrap()
            .backup
            .unwrap();
        assert_eq!(
            (backup.store.as_str(), backup.upload_interval_ms),
            ("s3://wal", 10_000)
        );
        let error = toml::from_str::<SafekeeperConfig>(&format!("{text}lissten = 1\n")).unwrap_err();
        assert!(error.to_string().contains("lissten"), "{error}");
    }
}
