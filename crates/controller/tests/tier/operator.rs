//! What an operator sees of a controller.

use std::net::SocketAddr;

use lakebed_admin::Health;
use lakebed_controller::{Controller, ControllerConfig};
use lakebed_proto::v1;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::tier::{soon, until};

#[tokio::test]
async fn health_status_and_metrics_tell_what_is_known() {
    let home = tempfile::tempdir().unwrap();
    let listen: SocketAddr = ([127, 0, 0, 1], 0).into();
    let config = format!(
        "node_id = 7\ndata_dir = '{}'\nlisten = '{listen}'\nraft_tick_ms = 20\n",
        home.path().display()
    );
    let config: ControllerConfig = toml::from_str(&config).unwrap();
    let controller = Controller::open(config).unwrap();
    let mut registry = Registry::default();
    controller.register_metrics(&mut registry);
    let (stop, (ready, address)) = (CancellationToken::new(), oneshot::channel());
    let serving = tokio::spawn(controller.clone().serve(stop.clone(), ready));
    let address = soon("the controller", address).await.unwrap().to_string();

    let channel = soon("a connection", lakebed_proto::connect(&address))
        .await
        .unwrap();
    let node = v1::RegisterNodeRequest {
        node_id: 1,
        role: v1::NodeRole::Safekeeper.into(),
        address: "h:1".to_owned(),
        incarnation: 1,
    };
    let mut client = v1::controller_client::ControllerClient::new(channel);
    client.register_node(node).await.unwrap();
    assert_eq!(controller.health(), Health::Ok);
    let status = controller.status_json();
    assert_eq!(status["leader_id"], 7);
    assert_eq!(status["state"]["nodes"]["1"]["address"], "h:1");
    until("the metrics to follow", || async {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text.contains("controller_nodes 1\n").then_some(())
    })
    .await;

    stop.cancel();
    soon("the end", serving).await.unwrap().unwrap();
}
