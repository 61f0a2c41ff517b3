//! Sending files to one shard.

use bytes::Bytes;
use lakebed_proto::v1::import_message::Message;
use lakebed_proto::v1::pageserver_client::PageserverClient;
use lakebed_proto::{connect, v1};
use lakebed_types::TenantId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::error::BootstrapError;
use super::files::DataDirectory;
use super::source::ImportTarget;

/// Pieces of files that wait to be sent, each up to 1 MiB.
const PIECES_AHEAD: usize = 4;

/// The receiver is gone; why, [`ShardUpload::finish`] tells.
#[derive(Debug)]
pub struct Gone;

/// An import that is being sent to one shard. Dropped before [`ShardUpload::finish`] it comes to nothing: the stream
/// breaks, and the pageserver forgets what it received.
#[derive(Debug)]
pub struct ShardUpload {
    pieces: mpsc::Sender<v1::ImportMessage>,
    answer: Answering,
    index: u32,
    address: String,
}

/// Ends the call when it is dropped: a stream that just ended would look whole.
#[derive(Debug)]
struct Answering(JoinHandle<Result<v1::ImportResponse, Status>>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ShardUpload {
    /// Begins to send to the shard's owner.
    ///
    /// # Errors
    /// Nobody answers there.
    pub async fn start(
        target: &ImportTarget,
        shard: &v1::ShardLocation,
    ) -> Result<ShardUpload, BootstrapError> {
        ShardUpload::begin(target.tenant, shard, target.timeline.clone()).await
    }

    async fn begin(
        tenant: TenantId,
        shard: &v1::ShardLocation,
        timeline: Bytes,
    ) -> Result<ShardUpload, BootstrapError> {
        let address = shard.node.clone().unwrap_or_default().address;
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
        let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
        let mut client = PageserverClient::new(channel);
        let answer = tokio::spawn(async move {
            let answer = client.import_timeline(ReceiverStream::new(receiver)).await?;
            Ok(answer.into_inner())
        });
        let upload = ShardUpload {
            pieces,
            answer: Answering(answer),
            index: shard.index,
            address,
        };
        // Should the receiver be gone already, the next piece finds that out too.
        let _ = upload.send(Message::Start(start)).await;
        Ok(upload)
    }

    /// Sends one message; waits while the shard is behind.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn send(&self, message: Message) -> Result<(), Gone> {
        let message = v1::ImportMessage {
            message: Some(message),
        };
        self.pieces.send(message).await.map_err(|_| Gone)
    }

    /// Why the shard takes no more, if it has said so.
    pub async fn failure(mut self) -> Option<BootstrapError> {
        match self.answer.0.is_finished() {
            true => (&mut self.answer.0)
                .await
                .ok()?
                .err()
                .map(|status| self.refused(status)),
            false => None,
        }
    }

    fn refused(&self, status: Status) -> BootstrapError {
        BootstrapError::Pageserver {
            shard: self.index,
            address: self.address.clone(),
            status: Box::new(status),
        }
    }

    /// Ends the stream and waits until everything is stored.
    ///
    /// # Errors
    /// What the pageserver says.
    pub async fn finish(self) -> Result<v1::ImportResponse, BootstrapError> {
        let ShardUpload {
            pieces,
            mut answer,
            index,
            address,
        } = self;
        drop(pieces);
        (&mut answer.0)
            .await?
            .map_err(|status| BootstrapError::Pageserver {
                shard: index,
                address,
                status: Box::new(status),
            })
    }
}

/// Sends the directory to the shard's owner and waits until it is stored.
pub async fn import_shard(
    directory: DataDirectory,
    tenant: TenantId,
    shard: v1::ShardLocation,
    timeline: Bytes,
) -> Result<v1::ImportResponse, BootstrapError> {
    let upload = ShardUpload::begin(tenant, &shard, timeline).await?;
    let pieces = upload.pieces.clone();
    let reading = tokio::task::spawn_blocking(move || {
        directory.visit(&mut |chunk| {
            let message = v1::ImportMessage {
                message: Some(Message::Chunk(chunk)),
            };
            pieces.blocking_send(message).map_err(|_| Gone)
        })
    });
    // On failure the call is dropped, and with it everything that the pageserver received.
    reading.await??;
    upload.finish().await
}
