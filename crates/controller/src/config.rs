//! What an operator tells a controller, in TOML.

use std::net::SocketAddr;
use std::path::PathBuf;

use lakebed_placement::apply::MAX_SAFEKEEPERS;
use lakebed_types::ShardCount;
use serde::Deserialize;

/// Configuration of a controller.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// This member's number, not zero. It never changes for a data directory.
    pub node_id: u64,
    /// Directory of the raft log and its snapshot. One process at a time.
    pub data_dir: PathBuf,
    /// Address of the gRPC service; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Address of the HTTP pages for operators, served by the process that embeds the controller.
    #[serde(default)]
    pub admin_listen: Option<SocketAddr>,
    /// Shards of a tenant whose creator does not say, 1 to 128.
    #[serde(default = "default_shards")]
    pub default_shards: u8,
    /// Safekeepers of a tenant whose creator does not say, 1 to 9.
    #[serde(default = "default_safekeepers")]
    pub default_safekeepers: u8,
    /// raft's unit of time, in milliseconds: an election takes ten.
    #[serde(default = "default_raft_tick_ms")]
    pub raft_tick_ms: u64,
    /// Applied commands after which a snapshot replaces the log.
    #[serde(default = "default_snapshot_every_entries")]
    pub snapshot_every_entries: u64,
    /// How long a call waits for its effect, such as a branch to become usable, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub wait_ms: u64,
}

fn default_shards() -> u8 {
    4
}

fn default_safekeepers() -> u8 {
    3
}

fn default_raft_tick_ms() -> u64 {
    100
}

fn default_snapshot_every_entries() -> u64 {
    10_000
}

fn default_wait_ms() -> u64 {
    60_000
}

/// A value of the configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the controller's configuration: `{key}` is {given}; it must be {expected}")]
pub struct InvalidConfig {
    key: &'static str,
    given: u64,
    expected: &'static str,
}

impl ControllerConfig {
    /// Refuses values outside their range.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let rows = [
            ("node_id", self.node_id, self.node_id != 0, "above 0"),
            (
                "default_shards",
                u64::from(self.default_shards),
                ShardCount::new(self.default_shards).is_some(),
                "between 1 and 128",
            ),
            (
                "default_safekeepers",
                u64::from(self.default_safekeepers),
                (1..=MAX_SAFEKEEPERS).contains(&usize::from(self.default_safekeepers)),
                "between 1 and 9",
            ),
            (
                "raft_tick_ms",
                self.raft_tick_ms,
                (1..=10_000).contains(&self.raft_tick_ms),
                "between 1 and 10000",
            ),
            (
                "snapshot_every_entries",
                self.snapshot_every_entries,
                (1..=1_000_000).contains(&self.snapshot_every_entries),
                "between 1 and 1000000",
            ),
            (
                "wait_ms",
                self.wait_ms,
                (1..=3_600_000).contains(&self.wait_ms),
                "between 1 and 3600000",
            ),
        ];
        match rows.into_iter().find(|(_, _, valid, _)| !valid) {
            Some((key, given, _, expected)) => Err(InvalidConfig { key, given, expected }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_is_read_and_an_unknown_key_or_a_bad_value_is_named() {
        let text = "data_dir = '/var/lib/lakebed'\nlisten = '127.0.0.1:7000'\nnode_id = 1\n";
        let config: ControllerConfig = toml::from_str(text).unwrap();
        assert_eq!((config.default_shards, config.default_safekeepers), (4, 3));
        config.validate().unwrap();
        let error = toml::from_str::<ControllerConfig>(&format!("{text}lissten = 1\n")).unwrap_err();
        assert!(error.to_string().contains("lissten"), "{error}");
        let bad: ControllerConfig = toml::from_str(&format!("{text}default_shards = 129\n")).unwrap();
        let error = bad.validate().unwrap_err().to_string();
        assert!(error.contains("`default_shards` is 129"), "{error}");
    }
}
