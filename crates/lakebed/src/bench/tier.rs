//! The private tier of a benchmark: the roles as child processes, everything in one directory that goes with it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fs, net};

use anyhow::Context;
use clap::Args;
use lakebed_compute::data_dir::{Owner, owner_of};
use lakebed_proto::connect;
use lakebed_proto::v1::controller_client::ControllerClient;
use tonic::transport::Channel;

use crate::cli::ProgramArgs;
use crate::initdb;
use crate::roles::compute::shim as default_shim;
use crate::up::layout::UpDirectory;
use crate::up::{Daemons, Told, start_daemons, tenant};

/// How the private tier is made.
#[derive(Clone, Debug, Args)]
pub struct TierArgs {
    /// Directory to make the private tier in. Default: the one for temporary files.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// pgbench must be among the programs, or on the path.
    #[command(flatten)]
    pub programs: ProgramArgs,
    /// Number of pageserver shards.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub shards: u8,
    /// Number of safekeepers.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub safekeepers: u8,
}

/// A directory that is removed when dropped.
#[derive(Debug)]
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// See the module header.
#[derive(Debug)]
pub struct PrivateTier {
    /// Programs of Postgres.
    pub pg_bin: PathBuf,
    /// Name of the user that Postgres runs as.
    pub run_as: String,
    /// Its ids, when this is root.
    pub owner: Owner,
    /// The preloaded library.
    pub shim: PathBuf,
    /// Its directory and ports.
    pub directory: UpDirectory,
    /// What its roles are told besides.
    pub told: Told,
    daemons: Daemons,
    // Last: removed when nothing uses it any more.
    home: Home,
}

impl PrivateTier {
    /// Decides on directory and ports.
    ///
    /// # Errors
    /// A program is missing, or the directory cannot be made.
    pub fn prepare(args: &TierArgs) -> anyhow::Result<PrivateTier> {
        let ProgramArgs { pg_bin, run_as } = args.programs.clone();
        initdb::check_programs(&pg_bin)?;
        let owner = owner_of(&run_as)?;
        let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let path = std::path::absolute(parent.join(format!("lakebed-bench-{}", std::process::id())))?;
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        let home = Home(path);
        // Postgres runs as another user.
        fs::set_permissions(&home.0, fs::Permissions::from_mode(0o755))?;
        let directory = UpDirectory::take(home.0.join("tier"), args.safekeepers, args.shards)?;
        if owner.is_some() {
            directory.check_others_may_enter(&run_as)?;
        }
        Ok(PrivateTier {
            pg_bin,
            run_as,
            owner,
            shim: default_shim(None)?,
            directory,
            told: Told::default(),
            daemons: Daemons::default(),
            home,
        })
    }

    /// Starts the roles and imports a fresh `initdb`.
    ///
    /// # Errors
    /// A role does not start.
    pub async fn start(&self) -> anyhow::Result<()> {
        start_daemons(&self.directory, &self.daemons, &self.told).await?;
        eprintln!("importing a fresh initdb");
        tenant::ensure(&self.directory, &self.pg_bin, self.owner).await
    }

    /// Stops the roles.
    pub async fn stop(self) {
        self.daemons.stop().await;
    }

    /// Stops the roles, for a while.
    pub async fn pause(&mut self) {
        std::mem::take(&mut self.daemons).stop().await;
    }

    /// Starts the roles with what they had.
    ///
    /// # Errors
    /// A role does not start.
    pub async fn resume(&self) -> anyhow::Result<()> {
        start_daemons(&self.directory, &self.daemons, &self.told).await
    }

    /// Parent of whatever a benchmark keeps beside the tier.
    pub fn home(&self) -> &Path {
        &self.home.0
    }

    /// A client of the controller.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn controller(&self) -> anyhow::Result<ControllerClient<Channel>> {
        let channel = connect(&self.directory.layout.controller()).await?;
        Ok(ControllerClient::new(channel))
    }

    /// Connection string of a branch.
    pub fn connect(&self, branch: &str) -> String {
        format!(
            "lakebed://{}/{}/{branch}",
            self.directory.layout.controller(),
            tenant::TENANT
        )
    }
}

/// A port that was free a moment ago.
///
/// # Errors
/// There is none.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = net::TcpListener::bind(("127.0.0.1", 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}
