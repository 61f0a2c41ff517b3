//! `lakebed explain page`: how a page comes about, asked of the pageserver that owns it.

use std::time::Duration;

use anyhow::{Context, bail};
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::v1::{self, PageSource};
use lakebed_proto::{connect, convert};
use lakebed_types::data_directory::{FileKind, classify};
use lakebed_types::shard::shard_of;
use lakebed_types::{ForkNumber, Lsn, PageKey, RelTag, ShardCount, ShardIdentity, TimelineId};
use serde_json::{Value, json};

use super::{controller, table, told};
use crate::cli::{ExplainCommand, ExplainPageArgs};

/// Longer than a pageserver waits for WAL.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs one of them.
pub async fn run(command: ExplainCommand, as_json: bool) -> anyhow::Result<()> {
    let ExplainCommand::Page(args) = command;
    let key = PageKey::Rel {
        rel: args.relation.0.with_fork(args.fork.into()),
        block: args.block,
    };
    let (_, mut client) = controller(&args.client).await?;
    let request = v1::ResolveBranchRequest {
        tenant: args.tenant.clone(),
        branch: args.branch.clone(),
    };
    let branch = client.resolve_branch(request).await.map_err(told)?.into_inner();
    let (tenant, timeline) = convert::timeline(branch.timeline.as_ref())?;
    let count = u8::try_from(branch.shards.len()).ok().and_then(ShardCount::new);
    let count = count.context("the branch has no shards yet")?;
    let index = shard_of(&key, count);
    let shard = ShardIdentity::new(index, count).context("the branch's shards")?;
    let location = branch.shards.get(usize::from(index));
    let node = location.and_then(|location| location.node.clone());
    let node = node.with_context(|| format!("shard {shard} has no pageserver"))?;
    let lsn = args.lsn.unwrap_or(Lsn::MAX);
    let request = v1::ExplainPageRequest {
        shard: Some(convert::shard_ref(tenant, shard)),
        timeline: timeline.0.to_vec().into(),
        at: Some(v1::ReadPoint {
            lsn: lsn.0,
            // What has a position of its own is waited for.
            not_modified_since: args.lsn.map_or(0, |lsn| lsn.0),
        }),
        key: key.encode().to_vec().into(),
    };
    let channel = connect(&node.address)
        .await
        .with_context(|| format!("pageserver {} does not answer: does it run?", node.address))?;
    let mut pageserver = PageserverClient::new(channel);
    let asked = tokio::time::timeout(PATIENCE, pageserver.explain_page(request)).await;
    let explained = asked
        .with_context(|| format!("pageserver {} did not answer in time", node.address))?
        .map_err(told)?;
    let page = Page {
        args: &args,
        key,
        timeline,
        shard,
        address: node.address,
        explained: explained.into_inner(),
    };
    match as_json {
        true => println!("{}", page.json()?),
        false => page.print()?,
    }
    Ok(())
}

/// A relation on the command line: `SPC/DB/REL`, or what `pg_relation_filepath` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation(RelTag);

impl std::str::FromStr for Relation {
    type Err = String;

    fn from_str(text: &str) -> Result<Relation, String> {
        if let FileKind::Relation { rel, segment: 0 } = classify(text) {
            return Ok(Relation(rel.with_fork(ForkNumber::Main)));
        }
        let mut parts = text.split('/').map(str::parse::<u32>);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(spcnode)), Some(Ok(dbnode)), Some(Ok(relnode)), None) => Ok(Relation(RelTag {
                spcnode,
                dbnode,
                relnode,
                fork: ForkNumber::Main,
            })),
            _ => Err("give what `select pg_relation_filepath('TABLE')` says, as base/5/16384".to_owned()),
        }
    }
}

struct Page<'a> {
    args: &'a ExplainPageArgs,
    key: PageKey,
    timeline: TimelineId,
    shard: ShardIdentity,
    address: String,
    explained: v1::ExplainPageResponse,
}

fn source(step: &v1::ExplainedStep) -> &'static str {
    match step.source() {
        PageSource::Memory => "memory",
        PageSource::Frozen => "memory, being stored",
        PageSource::Level0 => "level 0",
        PageSource::Current => "current",
        PageSource::History => "history",
        PageSource::Unspecified => "?",
    }
}

fn micros(nanoseconds: u64) -> f64 {
    (nanoseconds / 10) as f64 / 100.0
}

impl Page<'_> {
    fn redo_ns(&self) -> u64 {
        self.explained.values.iter().map(|value| value.nanoseconds).sum()
    }

    fn stored_bytes(&self) -> u64 {
        let values = self.explained.values.iter();
        values.map(|value| u64::from(value.bytes)).sum()
    }

    /// LSN of what the page begins with, and how many values change it after that.
    fn base(&self) -> (Option<Lsn>, usize) {
        let values = &self.explained.values;
        let alone = |value: &v1::ExplainedValue| matches!(value.kind.as_str(), "image" | "base");
        match values.first().filter(|value| alone(value)) {
            Some(base) => (Some(Lsn(base.lsn)), values.len() - 1),
            None => (None, values.len()),
        }
    }

    fn copied_from(&self) -> anyhow::Result<Option<PageKey>> {
        let wire = &self.explained.copied_from;
        if wire.is_empty() {
            return Ok(None);
        }
        Ok(Some(convert::page_key(wire)?))
    }

    fn timeline_of(&self, step: &v1::ExplainedStep) -> anyhow::Result<TimelineId> {
        Ok(TimelineId::from_slice(&step.timeline)?)
    }

    fn json(&self) -> anyhow::Result<Value> {
        let step = |step: &v1::ExplainedStep| -> anyhow::Result<Value> {
            Ok(json!({
                "timeline": self.timeline_of(step)?,
                "page": convert::page_key(&step.key)?.to_string(),
                "source": source(step),
                "layer": (!step.layer.is_empty()).then_some(&step.layer),
                "first_lsn": (!step.layer.is_empty()).then(|| Lsn(step.first_lsn).to_string()),
                "last_lsn": (!step.layer.is_empty()).then(|| Lsn(step.last_lsn).to_string()),
                "values": step.values,
                "filtered": step.filtered,
                "index_blocks": step.index_blocks,
                "data_blocks": step.data_blocks,
                "us": micros(step.nanoseconds),
            }))
        };
        let value = |value: &v1::ExplainedValue| {
            json!({
                "step": value.step,
                "lsn": Lsn(value.lsn).to_string(),
                "kind": value.kind,
                "record": (!value.record.is_empty()).then_some(&value.record),
                "bytes": value.bytes,
                "us": micros(value.nanoseconds),
            })
        };
        let (base, deltas) = self.base();
        Ok(json!({
            "tenant": self.args.tenant,
            "branch": self.args.branch,
            "timeline": self.timeline,
            "shard": self.shard.to_string(),
            "pageserver": self.address,
            "page": self.key.to_string(),
            "lsn": Lsn(self.explained.served_lsn).to_string(),
            "floor_lsn": Lsn(self.explained.floor_lsn).to_string(),
            "copied_from": self.copied_from()?.map(|key| key.to_string()),
            "base_lsn": base.map(|lsn| lsn.to_string()),
            "deltas": deltas,
            "stored_bytes": self.stored_bytes(),
            "redo_us": micros(self.redo_ns()),
            "us": micros(self.explained.nanoseconds),
            "steps": self.explained.steps.iter().map(step).collect::<anyhow::Result<Vec<_>>>()?,
            "values": self.explained.values.iter().map(value).collect::<Vec<_>>(),
        }))
    }

    fn print(&self) -> anyhow::Result<()> {
        let (key, lsn) = (self.key, Lsn(self.explained.served_lsn));
        println!(
            "{key} of {}/{} at {lsn}: shard {} on {}",
            self.args.tenant, self.args.branch, self.shard, self.address
        );
        let mut steps = table(&["STEP", "ASKED", "LAYER", "LSN", "VALUES", "BLOCKS", "µs"]);
        for (number, step) in self.explained.steps.iter().enumerate() {
            let mut asked = source(step).to_owned();
            if self.timeline_of(step)? != self.timeline {
                asked += &format!(" of ancestor {}", self.timeline_of(step)?);
            }
            let of = convert::page_key(&step.key)?;
            if of != key {
                asked += &format!(" for {of}");
            }
            let range = match step.layer.is_empty() {
                true => String::new(),
                false => format!("{} to {}", Lsn(step.first_lsn), Lsn(step.last_lsn)),
            };
            let values = match step.filtered {
                true => "none (filter)".to_owned(),
                false => step.values.to_string(),
            };
            steps.add_row([
                number.to_string(),
                asked,
                step.layer.clone(),
                range,
                values,
                format!("{} + {} of index", step.data_blocks, step.index_blocks),
                micros(step.nanoseconds).to_string(),
            ]);
        }
        println!("{steps}");
        let mut values = table(&["LSN", "KIND", "RECORD", "BYTES", "STEP", "µs"]);
        for value in &self.explained.values {
            values.add_row([
                Lsn(value.lsn).to_string(),
                value.kind.clone(),
                value.record.clone(),
                value.bytes.to_string(),
                value.step.to_string(),
                micros(value.nanoseconds).to_string(),
            ]);
        }
        if !self.explained.values.is_empty() {
            println!("{values}");
        }
        let (base, deltas) = self.base();
        let begins = match (base, self.copied_from()?) {
            (Some(lsn), _) => format!("begins at {lsn}"),
            (None, Some(source)) => format!("begins as a copy of {source}"),
            (None, None) => "begins as zeros".to_owned(),
        };
        println!(
            "{begins}; {deltas} changes; {} bytes stored; replayed in {} µs, all in {} µs",
            self.stored_bytes(),
            micros(self.redo_ns()),
            micros(self.explained.nanoseconds)
        );
        if self.explained.page.len() != lakebed_types::PAGE_SIZE {
            bail!(
                "the pageserver gave {} bytes for a page",
                self.explained.page.len()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_is_named_as_postgres_does() {
        let of = |text: &str| text.parse::<Relation>().map(|relation| relation.0.to_string());
        assert_eq!(of("base/5/16384"), Ok("1663/5/16384".to_owned()));
        assert_eq!(of("global/1262"), Ok("1664/0/1262".to_owned()));
        assert_eq!(of("1663/5/16384"), Ok("1663/5/16384".to_owned()));
        for wrong in ["accounts", "base/5", "base/5/16384.1", "1/2/3/4", ""] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
