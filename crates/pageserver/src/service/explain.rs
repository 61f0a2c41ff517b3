//! An explained page as a message.

use std::time::Duration;

use bytes::Bytes;
use lakebed_layer::{LayerKind, ValueKind};
use lakebed_proto::v1::{self, PageSource};
use lakebed_types::{Lsn, PageKey};
use tonic::Status;

use crate::timeline::Timeline;
use crate::timeline::explain::{Explained, Replayed, Source, Step};

/// Builds and explains a page.
pub(super) async fn page(
    timeline: &Timeline,
    key: &PageKey,
    lsn: Lsn,
) -> Result<v1::ExplainPageResponse, Status> {
    let explained = timeline.obtaining(|| timeline.explain(key, lsn)).await;
    let explained = explained.map_err(|error| {
        let text = format!(
            "{key} of timeline {} at {lsn}: {error}",
            timeline.identity.timeline
        );
        match error.may_pass() {
            true => Status::unavailable(text),
            false => Status::internal(text),
        }
    })?;
    let Explained {
        floor,
        copied_from,
        steps,
        values,
        page,
        took,
    } = explained;
    Ok(v1::ExplainPageResponse {
        served_lsn: lsn.0,
        floor_lsn: floor.0,
        copied_from: copied_from.map(|key| wire(&key)).unwrap_or_default(),
        steps: steps.iter().map(step).collect(),
        values: values.into_iter().map(value).collect(),
        nanoseconds: nanoseconds(took),
        page: Bytes::from(page as Box<[u8]>),
    })
}

fn wire(key: &PageKey) -> Bytes {
    Bytes::copy_from_slice(&key.encode())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn step(step: &Step) -> v1::ExplainedStep {
    let mut wire = v1::ExplainedStep {
        timeline: step.timeline.0.to_vec().into(),
        key: wire(&step.key),
        values: count(step.values),
        filtered: step.filtered,
        index_blocks: step.index_blocks,
        data_blocks: step.data_blocks,
        nanoseconds: nanoseconds(step.took),
        ..Default::default()
    };
    let source = match step.source {
        Source::Memory => PageSource::Memory,
        Source::Frozen => PageSource::Frozen,
        Source::Layer {
            id,
            kind,
            first,
            last,
        } => {
            wire.layer = id.to_string();
            (wire.first_lsn, wire.last_lsn) = (first.0, last.0);
            match kind {
                LayerKind::Level0 => PageSource::Level0,
                LayerKind::Current => PageSource::Current,
                LayerKind::History => PageSource::History,
                LayerKind::Catalogue => PageSource::Unspecified,
            }
        }
    };
    wire.set_source(source);
    wire
}

fn value(value: Replayed) -> v1::ExplainedValue {
    let kind = match value.kind {
        ValueKind::Image => "image",
        ValueKind::Base => "base",
        ValueKind::Delta => "delta",
        ValueKind::VmClear => "vm_clear",
        ValueKind::VmTruncate => "vm_truncate",
        ValueKind::Slru => "slru",
        ValueKind::State => "state",
    };
    v1::ExplainedValue {
        step: count(value.step),
        lsn: value.lsn.0,
        kind: kind.to_owned(),
        record: value.record.unwrap_or_default(),
        bytes: count(value.bytes),
        nanoseconds: nanoseconds(value.took),
    }
}
