//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lakebed_compute::config::WireWal;
use lakebed_pgwire::Target;
use lakebed_types::{ForkNumber, Lsn, TenantId, TimelineId};

use crate::bench::BenchArgs;
use crate::client::explain::Relation;
use crate::draw::DrawArgs;
use crate::window::{Bound, Bytes, Seconds};

/// Storage for unmodified Postgres: WAL on a quorum of safekeepers, pages from pageservers, branches for free.
#[derive(Debug, Parser)]
#[command(name = "lakebed", version, propagate_version = true)]
pub struct Cli {
    /// Print JSON on standard output.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine: controller, safekeepers, pageservers and a compute.
    Up(UpArgs),
    /// Run a controller: names, placement, generations.
    Controller(RoleArgs),
    /// Run a safekeeper: a Paxos acceptor for WAL; or have others take its place.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Safekeeper(SafekeeperArgs),
    /// Change the safekeepers of a branch while it is in use, and look at them.
    Safekeepers(SafekeepersArgs),
    /// Run a pageserver: pages at any LSN.
    Pageserver(RoleArgs),
    /// Run a compute on a branch, or manage those of `lakebed up`.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Compute(ComputeArgs),
    /// Protect a Postgres that runs elsewhere: its WAL on the quorum, branches of it in the tier.
    WalClient(WalClientArgs),
    /// Create, list and delete tenants, each a Postgres cluster with its branches.
    Tenant(TenantArgs),
    /// Create, list, detach and delete branches.
    Branch(BranchArgs),
    /// Take a branch back to an earlier time or position, in place. What it was until now stays, as a branch of another name.
    Restore(RestoreArgs),
    /// Show what runs and how far it is.
    Status(ClientArgs),
    /// Show how an answer comes about.
    Explain(ExplainArgs),
    /// Draw what the tier tells and what was measured, as SVG on standard output.
    Draw(DrawArgs),
    /// Measure a private tier, which is made for that and removed afterwards.
    Bench(BenchArgs),
    /// Bring WAL back from object storage.
    Wal(WalArgs),
    /// Prove that object storage has all that it should, and find what nobody needs.
    Scrub(ScrubArgs),
    /// Replay a stock cluster's WAL over a base backup with this tier's redo, and compare with what Postgres made of it.
    VerifyWal(VerifyWalArgs),
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(subcommand)]
    pub command: ExplainCommand,
}

#[derive(Debug, Subcommand)]
pub enum ExplainCommand {
    /// A page at an LSN: which layers were asked, what they had of it, which records were replayed, and what each step took.
    Page(ExplainPageArgs),
}

#[derive(Debug, Args)]
pub struct ExplainPageArgs {
    /// Name of the tenant.
    pub tenant: String,
    /// Name of the branch.
    pub branch: String,
    /// Relation, as `select pg_relation_filepath('TABLE')` says: base/5/16384.
    #[arg(value_name = "REL")]
    pub relation: Relation,
    /// Number of the block.
    pub block: u32,
    /// Fork of the relation.
    #[arg(long, value_enum, default_value_t = Fork::Main)]
    pub fork: Fork,
    /// At this LSN. Default: the latest that the pageserver has.
    #[arg(long)]
    pub lsn: Option<Lsn>,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A fork on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fork {
    Main,
    Fsm,
    Vm,
    Init,
}

impl From<Fork> for ForkNumber {
    fn from(fork: Fork) -> ForkNumber {
        match fork {
            Fork::Main => ForkNumber::Main,
            Fork::Fsm => ForkNumber::Fsm,
            Fork::Vm => ForkNumber::Vm,
            Fork::Init => ForkNumber::Init,
        }
    }
}

#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// Object storage, as pageservers and safekeepers are configured with: file:///directory, s3://bucket/prefix?region=…
    pub store: String,
    /// Id of a tenant: look at it alone.
    #[arg(long)]
    pub tenant: Option<TenantId>,
    /// Read every byte of layers and WAL, and check it. Without it sizes, manifests, and footers of WAL are checked.
    #[arg(long)]
    pub deep: bool,
    /// Delete layers that are proven to be of no use. All else is only read.
    #[arg(long)]
    pub delete_orphans: bool,
    /// Seconds that something which nothing refers to must be old.
    #[arg(long, default_value_t = 86_400)]
    pub grace_s: u64,
}

#[derive(Debug, Args)]
pub struct WalArgs {
    #[command(subcommand)]
    pub command: WalCommand,
}

#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// Rebuild a timeline's WAL from object storage alone.
    Restore(WalRestoreArgs),
}

#[derive(Debug, Args)]
pub struct WalRestoreArgs {
    /// Object storage, as safekeepers are configured with: file:///directory, s3://bucket/prefix?region=…&endpoint=…
    #[arg(long)]
    pub from: String,
    /// Id of the tenant.
    #[arg(long)]
    pub tenant: TenantId,
    /// Id of the timeline.
    #[arg(long)]
    pub timeline: TimelineId,
    /// Where to: a directory for the segment files and the control file, made here; with --safekeeper the data directory
    /// of that safekeeper, which gets this timeline.
    #[arg(long)]
    pub to: PathBuf,
    /// Restore up to the last record that ends at or below this position. Default: everything. (To let a tier go on from
    /// an earlier moment make a branch instead.)
    #[arg(long, conflicts_with = "safekeeper")]
    pub until: Option<Lsn>,
    /// Number of a safekeeper that lost its disk, and is to go on with what is restored. Neither it nor any other of the
    /// old safekeepers may run.
    #[arg(long, value_name = "NODE_ID")]
    pub safekeeper: Option<u64>,
    /// Also take back the layers that pageservers stored of WAL that could not be restored, so that no page is newer than
    /// the WAL. Pageservers of the tenant must not run, and start with empty data directories.
    #[arg(long, requires = "safekeeper")]
    pub rewind_layers: bool,
}

/// Which Postgres.
#[derive(Clone, Debug, Args)]
pub struct ProgramArgs {
    /// Directory of the programs of Postgres 15, 16, 17 or 18. A branch runs on the version that made it.
    #[arg(long, default_value = "/usr/lib/postgresql/15/bin")]
    pub pg_bin: PathBuf,
    /// User that Postgres and initdb run as when this is root.
    #[arg(long, default_value = "postgres")]
    pub run_as: String,
}

/// A Postgres that is served from the tier.
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    #[command(flatten)]
    pub programs: ProgramArgs,
    /// More settings of Postgres, as `name=value`; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    /// The library that is preloaded into Postgres. Default: beside this program.
    #[arg(long)]
    pub shim: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Directory of everything. Default: /var/lib/lakebed as root, else ./lakebed-data.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Port of the Postgres on branch `main`.
    #[arg(long, default_value_t = 55432)]
    pub pg_port: u16,
    /// Number of safekeepers. The first start's branches are kept by all of them; with a higher number later starts add
    /// some, for `lakebed safekeepers change`.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub safekeepers: u8,
    /// Number of pageserver shards, at the first start; each gets a process.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub shards: u8,
    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
pub struct RoleArgs {
    /// TOML file; see deploy/ for an example of each role.
    #[arg(long)]
    pub config: PathBuf,
    /// End when the process that started this one ends.
    #[arg(long)]
    pub stop_with_parent: bool,
}

#[derive(Debug, Args)]
pub struct SafekeeperArgs {
    #[command(subcommand)]
    pub command: Option<SafekeeperCommand>,
    #[command(flatten)]
    pub run: SafekeeperRunArgs,
}

#[derive(Debug, Args)]
pub struct SafekeeperRunArgs {
    /// TOML file; see deploy/ for an example.
    #[arg(long, required = true)]
    pub config: Option<PathBuf>,
    /// End when the process that started this one ends.
    #[arg(long)]
    pub stop_with_parent: bool,
}

#[derive(Debug, Subcommand)]
pub enum SafekeeperCommand {
    /// Move every branch that a safekeeper keeps to others, one after the other. Nothing new is placed on it from the
    /// beginning on, also when this command is interrupted. May be repeated.
    Decommission {
        /// Number of the safekeeper. It need not run.
        node: u64,
        /// Let new branches be placed on it again instead. What was moved stays where it is.
        #[arg(long)]
        undo: bool,
        /// Seconds that one branch may take.
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        wait: u64,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Args)]
pub struct SafekeepersArgs {
    #[command(subcommand)]
    pub command: SafekeepersCommand,
}

/// Which branch's safekeepers.
#[derive(Clone, Debug, Args)]
pub struct SafekeepersOf {
    /// Name of the tenant.
    pub tenant: String,
    /// Name of the branch.
    pub branch: String,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub enum SafekeepersCommand {
    /// Show who keeps a branch's WAL, how far each is, and whether a change is under way.
    Status(SafekeepersOf),
    /// Replace, add or remove safekeepers. Who joins gets the WAL first, without counting, so that no commit waits for that;
    /// then a quorum of the present and of the wanted set must agree on each commit until the change is finished. It goes
    /// on while a compute runs on the branch, also when this command is interrupted. May be repeated.
    Change {
        #[command(flatten)]
        of: SafekeepersOf,
        /// Numbers of all safekeepers that are to keep it.
        #[arg(long, value_delimiter = ',', required = true, value_name = "NODES")]
        to: Vec<u64>,
        /// Who joins counts as soon as it lacks at most this of what is committed.
        #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..))]
        within: u64,
        /// Give the change up when who joins has not caught up after this many seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..))]
        deadline: u32,
        /// Wait up to this many seconds until the change is finished.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u64,
    },
    /// Finish a change without a compute: this command takes the branch for as long as that takes, and must run on a machine
    /// that reaches the safekeepers. Refused while a compute or a wal-client is connected, which finishes it by itself.
    Finish {
        #[command(flatten)]
        of: SafekeepersOf,
        /// Wait up to this many seconds until the change is finished.
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        wait: u64,
        /// Also while something is connected: it is fenced. For a compute that hangs, or whose machine is lost.
        #[arg(long)]
        fence: bool,
    },
    /// Give up a change, while the present set still counts. May be repeated.
    Abort {
        #[command(flatten)]
        of: SafekeepersOf,
        /// Wait up to this many seconds until the present set alone is in force again.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u64,
    },
}

#[derive(Debug, Args)]
pub struct ComputeArgs {
    #[command(subcommand)]
    pub command: Option<ComputeCommand>,
    #[command(flatten)]
    pub run: ComputeRunArgs,
}

#[derive(Debug, Args)]
pub struct ComputeRunArgs {
    /// The branch: lakebed://controller:port[,…]/TENANT/BRANCH
    #[arg(long, required_unless_present = "config")]
    pub connect: Option<String>,
    /// TOML file with all of this, instead of arguments; see deploy/compute.toml.
    #[arg(long, conflicts_with_all = ["connect", "dir", "settings", "shim"])]
    pub config: Option<PathBuf>,
    /// Directory of this compute; emptied at each start. Default: ./lakebed-compute-PORT
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// What Postgres listens on.
    #[arg(long, default_value = "127.0.0.1")]
    pub pg_listen: String,
    /// Port of Postgres.
    #[arg(long, default_value_t = 5432)]
    pub pg_port: u16,
    /// Address of the admin HTTP service; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub admin_listen: SocketAddr,
    /// Milliseconds without a quorum after which Postgres is stopped.
    #[arg(long, default_value_t = 10_000)]
    pub lease_ms: u64,
    /// How WAL goes to safekeepers: auto (compressed where the link is slow, and in a backlog), compact (in as few bytes as
    /// possible) or plain.
    #[arg(long, default_value = "auto")]
    pub wire_wal: WireWal,
    #[command(flatten)]
    pub server: ServerArgs,
    /// End when the process that started this one ends.
    #[arg(long)]
    pub stop_with_parent: bool,
}

#[derive(Debug, Args)]
pub struct WalClientArgs {
    /// The server: postgresql://user:password@host:port/, a user with the right REPLICATION. Without a password in it,
    /// PGPASSWORD is taken.
    #[arg(long, env = "LAKEBED_FROM", hide_env_values = true)]
    pub from: Target,
    /// Name of the tenant. If there is none, it is made of a base backup of the server.
    #[arg(long)]
    pub tenant: String,
    /// Name of its first branch, which the server's WAL goes to.
    #[arg(long, default_value = "main")]
    pub branch: String,
    /// What this client calls itself. With this name in the server's `synchronous_standby_names` the server acknowledges
    /// a commit once a quorum of safekeepers has it; otherwise the quorum follows a moment later.
    #[arg(long, default_value = "lakebed")]
    pub synchronous_name: String,
    /// Name of the replication slot on the server. Default: lakebed_TENANT_BRANCH
    #[arg(long)]
    pub slot: Option<String>,
    /// Most KiB of the base backup that the server sends in a second, 32 to 1048576. Default: as fast as it can.
    #[arg(long, value_parser = clap::value_parser!(u32).range(32..=1_048_576))]
    pub backup_rate_kib: Option<u32>,
    /// Number of shards of a new tenant; 0: as the controller is configured.
    #[arg(long, default_value_t = 0)]
    pub shards: u32,
    /// Number of safekeepers of a new tenant; 0: as the controller is configured.
    #[arg(long, default_value_t = 0)]
    pub safekeepers: u32,
    /// Address of the admin HTTP service; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub admin_listen: SocketAddr,
    /// Milliseconds without a quorum after which the stream begins anew.
    #[arg(long, default_value_t = 10_000)]
    pub lease_ms: u64,
    /// How WAL goes to safekeepers: auto, compact or plain.
    #[arg(long, default_value = "auto")]
    pub wire_wal: WireWal,
    /// End when the process that started this one ends.
    #[arg(long)]
    pub stop_with_parent: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub enum ComputeCommand {
    /// Start a compute on a branch and print its connection string.
    Start {
        /// Name of the branch; of another tenant than the first: TENANT/BRANCH.
        branch: String,
        /// Port of Postgres; default: the one that it had, or any free one.
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// Directory of the programs of Postgres, of the major version that made the branch. Default: those that it had,
        /// or those of `lakebed up`.
        #[arg(long)]
        pg_bin: Option<PathBuf>,
        /// Read the branch as it was at this LSN, such as 0/1A2B3C8, moved down to the end of a record: read-only, on a
        /// branch of its own, BRANCH-at-POSITION, which is made for it.
        #[arg(long, conflicts_with = "at_time")]
        at_lsn: Option<String>,
        /// Read the branch as of the last commit at or before this time, such as 2026-11-21T10:30:00Z, likewise.
        #[arg(long)]
        at_time: Option<String>,
        /// How long that branch stays at least: 90m, 2h, 7d. After that it goes as soon as no compute runs on it.
        #[arg(long, default_value = "1h", value_name = "TIME")]
        ttl: Seconds,
        /// Transactions do not write unless they say so, and nothing is vacuumed by itself.
        #[arg(long)]
        read_only: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Stop the compute of a branch.
    Stop {
        /// Name of the branch.
        branch: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show the compute of a branch, or of all.
    Status {
        /// Name of the branch.
        branch: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Args)]
pub struct TenantArgs {
    #[command(subcommand)]
    pub command: TenantCommand,
}

#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Create a tenant from a fresh `initdb`, or from a data directory that was shut down cleanly.
    Create {
        /// Name of the tenant.
        name: String,
        /// Name of its first branch.
        #[arg(long, default_value = "main")]
        branch: String,
        /// Number of shards; 0: as the controller is configured.
        #[arg(long, default_value_t = 0)]
        shards: u32,
        /// Number of safekeepers; 0: as the controller is configured.
        #[arg(long, default_value_t = 0)]
        safekeepers: u32,
        /// A data directory to import instead of running initdb.
        #[arg(long)]
        from: Option<PathBuf>,
        /// How long history is kept: 12h, 7d, 4w, or none for ever. Default: 7d.
        #[arg(long, value_name = "TIME")]
        window: Option<Bound<Seconds>>,
        /// Keep at most so much WAL of history: 512MiB, 10GB. With both the shorter window counts. Default: no such bound.
        #[arg(long, value_name = "BYTES")]
        window_bytes: Option<Bound<Bytes>>,
        #[command(flatten)]
        programs: ProgramArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Change how long a tenant's history is kept. A longer window brings nothing back.
    Set {
        /// Name of the tenant.
        name: String,
        /// How long: 12h, 7d, 4w, or none for ever. Default: as it is.
        #[arg(long, value_name = "TIME", required_unless_present = "window_bytes")]
        window: Option<Bound<Seconds>>,
        /// At most so much WAL: 512MiB, 10GB, or none for no such bound. With both the shorter window counts. Default: as it
        /// is.
        #[arg(long, value_name = "BYTES")]
        window_bytes: Option<Bound<Bytes>>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Give a tenant more shards, while it is in use: 2, 3 or more times as many as it has.
    Split {
        /// Name of the tenant.
        name: String,
        /// How many it is to have.
        #[arg(required_unless_present = "abort", conflicts_with = "abort")]
        shards: Option<u32>,
        /// Call off what was begun and has not taken effect: the tenant keeps the shards that it has.
        #[arg(long)]
        abort: bool,
        /// Do not wait until the new shards have taken the place of the old ones.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Make another pageserver the owner of a shard.
    MoveShard {
        /// Name of the tenant.
        name: String,
        /// Number of the shard, from 0 on.
        shard: u32,
        /// Number of the pageserver, as `lakebed status` shows it.
        node: u64,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the tenants.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Delete a tenant with all its branches.
    Delete {
        /// Name of the tenant.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Args)]
pub struct BranchArgs {
    #[command(subcommand)]
    pub command: BranchCommand,
}

#[derive(Debug, Subcommand)]
pub enum BranchCommand {
    /// Create a branch: at the head of another, at an LSN, or at a time. No page is copied.
    Create {
        /// Name of the new branch.
        name: String,
        /// Branch to start from.
        #[arg(long, default_value = "main")]
        from: String,
        /// Start at this LSN, such as 0/1A2B3C8; moved down to the end of a record.
        #[arg(long, conflicts_with = "at_time")]
        at_lsn: Option<String>,
        /// Start at the last commit at or before this time: RFC 3339, such as 2026-11-21T10:30:00Z.
        #[arg(long)]
        at_time: Option<String>,
        /// Delete it by itself after so long, once no compute runs on it and nothing branches from it: 90m, 2h, 7d.
        #[arg(long, value_name = "TIME")]
        ttl: Option<Seconds>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the branches.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Make a branch independent of the one that it starts from: what it reads from there is copied in the background, while
    /// it is in use. Its history begins at its start then. Goes on when this command is interrupted. May be repeated.
    Detach {
        /// Name of the branch.
        branch: String,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Delete a branch. Refused while others start from it, and for the only one of a tenant.
    Delete {
        /// Name of the branch.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Name of the branch. No compute may run on it.
    pub branch: String,
    /// To the last commit at or before this time (RFC 3339, such as 2026-11-21T10:30:00Z), or to this LSN (such as
    /// 0/1A2B3C8).
    #[arg(long, value_name = "TIME|LSN")]
    pub at: String,
    /// Name for what the branch was until now. Default: BRANCH-before-TIME, of this moment.
    #[arg(long, value_name = "NAME")]
    pub keep_as: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args)]
pub struct VerifyWalArgs {
    /// A base backup (pg_basebackup, plain format) or the data directory of a stopped server; it is only read.
    #[arg(long)]
    pub base: PathBuf,
    /// Directory of WAL segments from the base's start on: pg_wal, or an archive.
    #[arg(long)]
    pub wal: PathBuf,
    /// Compare images from this LSN on; what is in front is replayed only.
    #[arg(long)]
    pub from: Option<String>,
    /// Stop here: in front of the first record that ends behind this LSN.
    #[arg(long)]
    pub to: Option<String>,
    /// A copy of the base that stock Postgres recovered to the same LSN: compare all its pages too.
    #[arg(long)]
    pub against: Option<PathBuf>,
    /// Memory for pages, in MiB; what does not fit goes to a file in TMPDIR.
    #[arg(long, default_value_t = 1024)]
    pub memory_mib: usize,
    /// Show at most this many mismatches and differences. All are counted.
    #[arg(long, default_value_t = 10)]
    pub show: usize,
}

/// Which tier a client command is about.
#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// Directory of a `lakebed up`. Default: as `lakebed up` itself.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// A tier elsewhere: lakebed://controller:port[,…][/TENANT]
    #[arg(long, env = "LAKEBED_CONNECT")]
    pub connect: Option<String>,
}
