//! WAL that this compute did not write, read from one safekeeper for another.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use lakebed_proto::v1::safekeeper_client::SafekeeperClient;
use lakebed_proto::{convert, v1};
use lakebed_types::{Lsn, Term};
use lakebed_wal::stream::WalDecoder;
use tonic::transport::Channel;

use crate::branch::Branch;

/// How long one read may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest range asked for: the longest record.
const MAX_RANGE_BYTES: u64 = 1 << 30;

/// Bytes from `begin` to a record boundary at or below `end`, or one whole record.
pub(super) async fn read(
    client: SafekeeperClient<Channel>,
    branch: &Branch,
    term: Term,
    begin: Lsn,
    end: Lsn,
) -> anyhow::Result<Bytes> {
    let mut range = end.0.saturating_sub(begin.0);
    loop {
        let read = read_range(client.clone(), branch, term, begin, Lsn(begin.0 + range));
        let bytes = tokio::time::timeout(PATIENCE, read)
            .await
            .context("no answer in time")??;
        let mut decoder = WalDecoder::new(branch.format(), begin, Lsn::INVALID);
        decoder.feed(&bytes);
        while decoder.next_raw().context("a donor's WAL")?.is_some() {}
        let whole = (decoder.position().0 - begin.0) as usize;
        if whole > 0 {
            return Ok(bytes.slice(..whole.min(bytes.len())));
        }
        if range >= MAX_RANGE_BYTES || (bytes.len() as u64) < range {
            bail!("no whole record in {} bytes at {begin}", bytes.len());
        }
        range = (range * 2).clamp(1 << 16, MAX_RANGE_BYTES);
    }
}

/// Bytes of `[begin, end)` as a safekeeper has them, or fewer when it has no more. Those that are not committed it gives
/// to the proposer of `term` only, and not once it has voted in a later one.
///
/// # Errors
/// It does not answer, does not have `begin`, or sends a chunk that does not follow the one before.
pub async fn read_range(
    mut client: SafekeeperClient<Channel>,
    branch: &Branch,
    term: Term,
    begin: Lsn,
    end: Lsn,
) -> anyhow::Result<Bytes> {
    let request = v1::ReadWalRequest {
        timeline: Some(convert::timeline_ref(branch.tenant, branch.timeline)),
        begin_lsn: begin.0,
        end_lsn: end.0,
        committed_only: false,
        term: term.0,
    };
    let mut chunks = client.read_wal(request).await?.into_inner();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.message().await? {
        if chunk.begin_lsn != begin.0 + bytes.len() as u64 {
            bail!(
                "a chunk at {} where {} was due",
                Lsn(chunk.begin_lsn),
                Lsn(begin.0 + bytes.len() as u64)
            );
        }
        bytes.extend_from_slice(&chunk.wal);
    }
    Ok(bytes.freeze())
}
