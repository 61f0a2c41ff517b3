//! Sending a data directory to one shard.

use bytes::Bytes;
use lakebed_proto::v1::import_message::Message;
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::{connect, v1};
use lakebed_types::TenantId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::error::BootstrapError;
use super::files::{DataDirectory, Gone};

/// Pieces of files that wait to be sent, each up to 1 MiB.
const PIECES_AHEAD: usize = 4;

/// Sends the directory to the shard's owner and waits until it is stored.
pub async fn import_shard(
    directory: &DataDirectory,
    tenant: TenantId,
    shard: &v1::ShardLocation,
    timeline: Bytes,
) -> Result<v1::ImportResponse, BootstrapError> {
    let address = shard.node.clone().unwrap_or_default().address;
    let refused = |status: Status| BootstrapError::Pageserver {
        shard: shard.index,
        address: address.clone(),
        status: Box::new(status),
    };
    let start = v1::ImportStart {
        shard: Some(v1::ShardRef {
            tenant: tenant.0.to_vec().into(),
            index: shard.index,
            count: shard.count,
        }),
        generation: shard.generation,
        timeline,
    };
    let channel = connect(&address)
        .await
        .map_err(|error| BootstrapError::connect(&address, &error))?;
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    let directory = directory.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let message = |message| v1::ImportMessage {
            message: Some(message),
        };
        let send = |piece| sender.blocking_send(message(piece)).map_err(|_| Gone);
        let read = match send(Message::Start(start)) {
            Ok(()) => directory.visit(&mut |chunk| send(Message::Chunk(chunk))),
            Err(Gone) => Ok(()),
        };
        // The stream must not end before it is known to be whole, so the sender outlives the reading.
        (read, sender)
    });
    let mut client = PageserverClient::new(channel);
    let answer = client.import_timeline(ReceiverStream::new(pieces));
    tokio::pin!(answer);
    let (read, sender) = tokio::select! {
        early = &mut answer => return Err(match early {
            Err(status) => refused(status),
            Ok(_) => BootstrapError::Answer(format!("{address} finished the import before it had every file")),
        }),
        read = reading => read?,
    };
    // On failure the call is dropped, and with it everything that the pageserver received.
    read?;
    drop(sender);
    Ok(answer.await.map_err(refused)?.into_inner())
}
