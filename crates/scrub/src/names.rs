//! Which object is what, by its path ([`lakebed_blobstore::paths`]).

use lakebed_blobstore::paths;
use lakebed_layer::LayerId;

/// Directory of a shard's timeline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Directory {
    /// The directory of all timelines of the shard.
    pub shard: String,
    /// The timeline's id.
    pub timeline: String,
}

impl Directory {
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.shard, self.timeline)
    }

    pub(crate) fn layer(&self, id: LayerId) -> String {
        format!("{}/{}/{id}", self.path(), paths::LAYERS)
    }

    /// Another timeline of the same shard.
    pub(crate) fn beside(&self, timeline: impl ToString) -> Directory {
        Directory {
            shard: self.shard.clone(),
            timeline: timeline.to_string(),
        }
    }
}

/// See the module header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// Layer, manifest or list of a shard's timeline.
    OfTimeline(Directory),
    /// WAL, in this directory.
    Wal(String),
    /// Known, and nothing to be looked at.
    Other,
    /// Not known.
    Unknown,
}

pub(crate) fn parse(path: &str) -> Name {
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        [
            "tenants",
            tenant,
            "shards",
            shard,
            "timelines",
            timeline,
            kind,
            name,
        ] => {
            let known = match kind {
                paths::LAYERS => name.parse::<LayerId>().is_ok(),
                paths::MANIFESTS => paths::parse_manifest(name).is_some(),
                _ => false,
            };
            match known {
                true => Name::OfTimeline(Directory {
                    shard: format!("tenants/{tenant}/shards/{shard}/timelines"),
                    timeline: timeline.to_owned(),
                }),
                false => Name::Unknown,
            }
        }
        ["tenants", _, "shards", _, "timelines", _, paths::RECENT]
        | ["safekeepers", _, "incarnation"]
        | ["scrub", _] => Name::Other,
        ["tenants", tenant, "wal", timeline, name]
            if lakebed_safekeeper::backup::objects::WalObject::parse(name).is_some() =>
        {
            Name::Wal(format!("tenants/{tenant}/wal/{timeline}"))
        }
        _ => Name::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let directory = Directory {
            shard: "tenants/t/shards/0-1/timelines".to_owned(),
            timeline: "l".to_owned(),
        };
        let of = |rest: &str| parse(&format!("{}/{rest}", directory.path()));
        for rest in ["layers/1-2f", "manifests/0000000000000001-0000000000000002"] {
            assert_eq!(of(rest), Name::OfTimeline(directory.clone()));
        }
        assert_eq!(of("recent"), Name::Other);
        for rest in ["layers/x", "manifests/1-2", "other/1-2", "layers/1-2/3"] {
            assert_eq!(of(rest), Name::Unknown, "{rest}");
        }
        let wal = "0000000001554d60-0000000002000000-0000000000000003-0000000000000002-w";
        assert_eq!(
            parse(&format!("tenants/t/wal/l/{wal}")),
            Name::Wal("tenants/t/wal/l".to_owned())
        );
        assert_eq!(parse("tenants/t/wal/l/other"), Name::Unknown);
    }
}
