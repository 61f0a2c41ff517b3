//! The computes of this machine, each a child process, and the service that starts and stops them.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lakebed_proto::v1::supervisor_server::Supervisor;
use lakebed_proto::v1::{self, ComputeState};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::child::Recipe;
use super::layout::check_free;
use super::target::Target;

/// What all computes have in common.
#[derive(Clone, Debug)]
pub struct Common {
    /// Address of the controller.
    pub controller: String,
    /// Parent of their directories.
    pub directory: PathBuf,
    /// Directory of their logs.
    pub logs: PathBuf,
    /// Programs of Postgres.
    pub pg_bin: PathBuf,
    /// User that Postgres runs as.
    pub run_as: String,
    /// The preloaded library.
    pub shim: PathBuf,
    /// More settings of Postgres.
    pub settings: Vec<String>,
}

#[derive(Debug)]
struct Compute {
    info: v1::ComputeInfo,
    pg_bin: PathBuf,
    stop: CancellationToken,
    ended: TaskTracker,
}

/// How a compute is to run.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Port of Postgres; 0: the one that it had, or any free one.
    pub port: u16,
    /// Programs of Postgres; without them those that it had, or those of all.
    pub pg_bin: Option<PathBuf>,
    /// See [`READ_ONLY`].
    pub read_only: bool,
}

/// What makes a compute read-only. Who wants to write may still do so and changes nothing but the compute's own branch.
const READ_ONLY: [&str; 2] = ["default_transaction_read_only=on", "autovacuum=off"];

/// All computes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Computes {
    common: Arc<Common>,
    computes: Arc<Mutex<BTreeMap<String, Compute>>>,
    /// One start or stop at a time, so that two starts of a branch do not fence each other.
    changing: Arc<Mutex<()>>,
}

impl Computes {
    /// None runs.
    pub fn new(common: Common) -> Computes {
        Computes {
            common: Arc::new(common),
            computes: Arc::default(),
            changing: Arc::default(),
        }
    }

    /// Starts a compute, or finds the one that runs.
    pub async fn start(&self, target: &Target, wanted: Wanted) -> Result<v1::ComputeInfo, Status> {
        let Wanted {
            port,
            pg_bin,
            read_only,
        } = wanted;
        let branch = &target.to_string();
        let _one = self.changing.lock().await;
        let known = self
            .computes
            .lock()
            .await
            .get(branch)
            .map(|compute| (compute.info.clone(), compute.pg_bin.clone()));
        let (known, had) = known.unzip();
        let port = match known {
            Some(info) if info.state() == ComputeState::Running => {
                if port != 0 && info.port != u32::from(port) {
                    return Err(Status::failed_precondition(format!(
                        "the compute of branch {branch} runs on port {}: stop it first",
                        info.port
                    )));
                }
                if pg_bin.is_some() && pg_bin != had {
                    return Err(Status::failed_precondition(format!(
                        "the compute of branch {branch} runs with the programs in {}: stop it first",
                        had.unwrap_or_default().display()
                    )));
                }
                if read_only != info.read_only {
                    let how = if info.read_only {
                        "read-only"
                    } else {
                        "for writing"
                    };
                    return Err(Status::failed_precondition(format!(
                        "the compute of branch {branch} runs {how}: stop it first"
                    )));
                }
                return Ok(info);
            }
            Some(info) if port == 0 => u16::try_from(info.port).unwrap_or_default(),
            _ => port,
        };
        let port = if port == 0 { free_port()? } else { port };
        check_free(port, &format!("branch {branch}"))
            .map_err(|error| Status::failed_precondition(format!("{error:#}")))?;
        let pg_bin = pg_bin.or(had).unwrap_or_else(|| self.common.pg_bin.clone());
        let recipe = self.recipe(target, port, &pg_bin, read_only);
        let stop = CancellationToken::new();
        let ended = TaskTracker::new();
        let mut info = v1::ComputeInfo {
            branch: branch.to_owned(),
            port: u32::from(port),
            connection: connection(port),
            read_only,
            ..Default::default()
        };
        info.set_state(ComputeState::Starting);
        self.remember(&info, &pg_bin, &stop, &ended).await;
        let running = match recipe.start().await {
            Ok(running) => running,
            Err(error) => {
                info.set_state(ComputeState::Failed);
                info.message = format!("{error:#}");
                self.remember(&info, &pg_bin, &stop, &ended).await;
                return Err(Status::unavailable(info.message));
            }
        };
        info.set_state(ComputeState::Running);
        info.admin = running.ready.admin.clone();
        self.remember(&info, &pg_bin, &stop, &ended).await;
        let (computes, told, mut ending) = (self.computes.clone(), stop.clone(), info.clone());
        ended.spawn(async move {
            let mut running = running;
            let message = tokio::select! {
                () = told.cancelled() => {
                    running.stop().await;
                    None
                }
                ended = running.ended() => Some(ended),
            };
            if let Some(message) = &message {
                eprintln!("the compute of branch {} ended: {message}", ending.branch);
            }
            ending.set_state(if message.is_some() {
                ComputeState::Failed
            } else {
                ComputeState::Stopped
            });
            ending.message = message.unwrap_or_default();
            ending.connection.clear();
            ending.admin.clear();
            if let Some(compute) = computes.lock().await.get_mut(&ending.branch) {
                compute.info = ending;
            }
        });
        ended.close();
        Ok(info)
    }

    async fn remember(
        &self,
        info: &v1::ComputeInfo,
        pg_bin: &Path,
        stop: &CancellationToken,
        ended: &TaskTracker,
    ) {
        let compute = Compute {
            info: info.clone(),
            pg_bin: pg_bin.to_owned(),
            stop: stop.clone(),
            ended: ended.clone(),
        };
        self.computes.lock().await.insert(info.branch.clone(), compute);
    }

    fn recipe(&self, target: &Target, port: u16, pg_bin: &Path, read_only: bool) -> Recipe {
        let common = &self.common;
        let mut arguments = vec![
            "compute".to_owned(),
            format!("--connect=lakebed://{}/{}", common.controller, target.path()),
            format!("--dir={}", common.directory.join(target.file_name()).display()),
            format!("--pg-bin={}", pg_bin.display()),
            format!("--pg-port={port}"),
            format!("--run-as={}", common.run_as),
            format!("--shim={}", common.shim.display()),
        ];
        let settings = common.settings.iter().map(String::as_str);
        let settings = settings.chain(READ_ONLY.into_iter().filter(|_| read_only));
        arguments.extend(settings.map(|setting| format!("--set={setting}")));
        let name = format!("compute-{}", target.file_name());
        Recipe {
            log: common.logs.join(format!("{name}.log")),
            name: format!("the compute of branch {target}"),
            arguments,
        }
    }

    /// Stops a compute in order; none if it is not known.
    pub async fn stop(&self, branch: &str) -> Option<v1::ComputeInfo> {
        let _one = self.changing.lock().await;
        let ended = {
            let computes = self.computes.lock().await;
            let compute = computes.get(branch)?;
            compute.stop.cancel();
            compute.ended.clone()
        };
        ended.close();
        ended.wait().await;
        self.computes
            .lock()
            .await
            .get(branch)
            .map(|compute| compute.info.clone())
    }

    /// Stops all.
    pub async fn stop_all(&self) {
        let branches: Vec<String> = self.computes.lock().await.keys().cloned().collect();
        for branch in branches {
            self.stop(&branch).await;
        }
    }

    /// By branch.
    pub async fn list(&self) -> Vec<v1::ComputeInfo> {
        self.computes
            .lock()
            .await
            .values()
            .map(|compute| compute.info.clone())
            .collect()
    }
}

fn connection(port: u16) -> String {
    format!("postgresql://postgres@127.0.0.1:{port}/postgres")
}

fn free_port() -> Result<u16, Status> {
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    port.map(|address| address.port())
        .map_err(|error| Status::internal(format!("no free port: {error}")))
}

fn target(text: &str) -> Result<Target, Status> {
    text.parse()
        .map_err(|error: anyhow::Error| Status::invalid_argument(error.to_string()))
}

#[tonic::async_trait]
impl Supervisor for Computes {
    async fn start_compute(
        &self,
        request: Request<v1::StartComputeRequest>,
    ) -> Result<Response<v1::ComputeInfo>, Status> {
        let request = request.into_inner();
        let port = u16::try_from(request.port);
        let port = port.map_err(|_| Status::invalid_argument(format!("{} is no port", request.port)))?;
        // Goes on when the client goes away: a half-started compute would be nobody's.
        let (computes, target) = (self.clone(), target(&request.branch)?);
        let wanted = Wanted {
            port,
            pg_bin: (!request.pg_bin.is_empty()).then(|| PathBuf::from(request.pg_bin)),
            read_only: request.read_only,
        };
        let started = tokio::spawn(async move { computes.start(&target, wanted).await });
        let started = started
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        started.map(Response::new)
    }

    async fn stop_compute(
        &self,
        request: Request<v1::StopComputeRequest>,
    ) -> Result<Response<v1::ComputeInfo>, Status> {
        let branch = target(&request.into_inner().branch)?.to_string();
        let info = self.stop(&branch).await;
        let stopped = || v1::ComputeInfo {
            branch,
            state: ComputeState::Stopped.into(),
            ..Default::default()
        };
        Ok(Response::new(info.unwrap_or_else(stopped)))
    }

    async fn list_computes(
        &self,
        _request: Request<v1::ListComputesRequest>,
    ) -> Result<Response<v1::ListComputesResponse>, Status> {
        let computes = self.list().await;
        Ok(Response::new(v1::ListComputesResponse { computes }))
    }
}
