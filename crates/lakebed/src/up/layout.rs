//! The directory of `lakebed up`: what is where, which ports, one process at a time.
//!
//! | name | content |
//! |---|---|
//! | `lakebed.json` | format, ports, numbers of nodes: made at the first start, kept |
//! | `lock` | held while it runs |
//! | `config/` | TOML file of each role, written at each start |
//! | `controller/`, `safekeeper-N/`, `pageserver-N/`, `objects/` | their data |
//! | `computes/` | each emptied at its start |
//! | `log/` | standard error of each process |

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// Newest format of the directory that this version knows.
const FORMAT: u32 = 1;

/// What is decided once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Format of the directory.
    pub format: u32,
    /// Port of the controller's gRPC service.
    pub controller_port: u16,
    /// Port of the supervisor's gRPC service.
    pub supervisor_port: u16,
    /// Port of each safekeeper.
    pub safekeeper_ports: Vec<u16>,
    /// Port of each pageserver.
    pub pageserver_ports: Vec<u16>,
    /// Ports of the admin services: controller, safekeepers, pageservers, in this order.
    pub admin_ports: Vec<u16>,
}

/// The directory, held by this process.
#[derive(Debug)]
pub struct UpDirectory {
    /// Where.
    pub path: PathBuf,
    /// What was decided.
    pub layout: Layout,
    /// It was made just now.
    pub fresh: bool,
    _lock: File,
}

/// Where `lakebed up` keeps everything when nobody says.
pub fn default_directory() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/lakebed"));
    }
    Ok(std::env::current_dir()
        .context("the current directory")?
        .join("lakebed-data"))
}

/// The directory to use.
pub fn directory(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    match given {
        Some(path) => std::path::absolute(path).with_context(|| format!("{}", path.display())),
        None => default_directory(),
    }
}

/// Reads the layout of a directory that some `lakebed up` has made.
pub fn read(path: &Path) -> anyhow::Result<Layout> {
    let file = path.join("lakebed.json");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "{} is no directory of `lakebed up`: give the right one with --dir, or a tier with --connect",
            path.display()
        ),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    #[derive(Deserialize)]
    struct OnlyFormat {
        format: u32,
    }
    let damaged = || format!("{} is damaged", file.display());
    let OnlyFormat { format } = serde_json::from_str(&text).with_context(damaged)?;
    if format > FORMAT {
        bail!(
            "{} has format {format}; this version of lakebed knows up to {FORMAT}: use a newer one. Nothing was changed",
            path.display()
        );
    }
    serde_json::from_str(&text).with_context(damaged)
}

impl UpDirectory {
    /// URL of its object storage.
    pub fn store(&self) -> String {
        format!("file://{}", self.path.join("objects").display())
    }

    /// Takes the directory, and makes it at the first start. Later ones may have more safekeepers, never fewer.
    ///
    /// # Errors
    /// Another process has it, its format is newer, it cannot be written, or a port of it is taken.
    pub fn take(path: PathBuf, safekeepers: u8, shards: u8) -> anyhow::Result<UpDirectory> {
        let exists = path.join("lakebed.json").exists();
        if !exists && fs::read_dir(&path).is_ok_and(|mut entries| entries.any(|entry| !is_lock(entry))) {
            bail!(
                "{} is not empty and was not made by `lakebed up`: choose another with --dir",
                path.display()
            );
        }
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        let lock =
            File::create(path.join("lock")).with_context(|| format!("writing to {}", path.display()))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "a `lakebed up` runs already in {}: stop it first, or choose another with --dir",
                path.display()
            );
        }
        let (layout, fresh) = match exists {
            true => (grow(&path, read(&path)?, usize::from(safekeepers))?, false),
            false => (make(&path, usize::from(safekeepers), usize::from(shards))?, true),
        };
        for (port, whose) in layout.ports() {
            check_free(port, &whose)?;
        }
        for name in ["config", "log", "computes"] {
            fs::create_dir_all(path.join(name))
                .with_context(|| format!("creating {}/{name}", path.display()))?;
        }
        Ok(UpDirectory {
            path,
            layout,
            fresh,
            _lock: lock,
        })
    }

    /// Refuses a directory that another user cannot enter, for Postgres runs as one.
    pub fn check_others_may_enter(&self, user: &str) -> anyhow::Result<()> {
        for directory in self.path.ancestors() {
            let mode = fs::metadata(directory)
                .with_context(|| format!("{}", directory.display()))?
                .permissions();
            if mode.mode() & 0o001 == 0 {
                bail!(
                    "Postgres runs as user {user}, who may not enter {}: choose another directory with --dir",
                    directory.display()
                );
            }
        }
        Ok(())
    }

    /// Path of a role's TOML file.
    pub fn config(&self, role: &str) -> PathBuf {
        self.path.join("config").join(format!("{role}.toml"))
    }

    /// Path of a process's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("log").join(format!("{name}.log"))
    }
}

fn is_lock(entry: std::io::Result<fs::DirEntry>) -> bool {
    entry.is_ok_and(|entry| entry.file_name() == "lock")
}

impl Layout {
    /// Address of the controller.
    pub fn controller(&self) -> String {
        local(self.controller_port)
    }

    /// Address of the supervisor.
    pub fn supervisor(&self) -> String {
        local(self.supervisor_port)
    }

    fn ports(&self) -> Vec<(u16, String)> {
        let mut ports = vec![
            (self.controller_port, "the controller".to_owned()),
            (self.supervisor_port, "`lakebed up` itself".to_owned()),
        ];
        let nodes = [
            ("safekeeper", &self.safekeeper_ports),
            ("pageserver", &self.pageserver_ports),
        ];
        for (role, list) in nodes {
            ports.extend(
                (1..)
                    .zip(list)
                    .map(|(number, port)| (*port, format!("{role} {number}"))),
            );
        }
        ports.extend(
            self.admin_ports
                .iter()
                .map(|port| (*port, "an admin service".to_owned())),
        );
        ports
    }
}

/// An address on this machine.
pub fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Refuses a port that another process has.
pub fn check_free(port: u16, whose: &str) -> anyhow::Result<()> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("port {port} of {whose} is in use by another process: stop that one first")
        }
        Err(error) => Err(error).with_context(|| format!("port {port} of {whose}")),
    }
}

fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // All are held until all are known, so that none is drawn twice.
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        held.push(TcpListener::bind(("127.0.0.1", 0)).context("looking for free ports")?);
    }
    let mut ports = Vec::with_capacity(count);
    for listener in &held {
        ports.push(listener.local_addr()?.port());
    }
    Ok(ports)
}

/// Adds safekeepers until there are so many. They keep nothing until `lakebed safekeepers change` names them.
fn grow(path: &Path, mut layout: Layout, safekeepers: usize) -> anyhow::Result<Layout> {
    let before = layout.safekeeper_ports.len();
    let Some(more) = safekeepers.checked_sub(before).filter(|more| *more > 0) else {
        return Ok(layout);
    };
    let mut ports = free_ports(2 * more)?;
    let admin = ports.split_off(more);
    layout.safekeeper_ports.extend(ports);
    // Behind the controller's and those of the other safekeepers.
    let place = (1 + before).min(layout.admin_ports.len());
    layout.admin_ports.splice(place..place, admin);
    store(path, &layout)?;
    Ok(layout)
}

fn make(path: &Path, safekeepers: usize, shards: usize) -> anyhow::Result<Layout> {
    let mut ports = free_ports(2 + safekeepers + shards + 1 + safekeepers + shards)?;
    let mut take = |count: usize| ports.drain(..count).collect::<Vec<_>>();
    let single = take(2);
    let layout = Layout {
        format: FORMAT,
        controller_port: single.first().copied().unwrap_or_default(),
        supervisor_port: single.last().copied().unwrap_or_default(),
        safekeeper_ports: take(safekeepers),
        pageserver_ports: take(shards),
        admin_ports: take(1 + safekeepers + shards),
    };
    store(path, &layout)?;
    Ok(layout)
}

fn store(path: &Path, layout: &Layout) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(layout)?;
    let (beside, file) = (path.join("lakebed.json.new"), path.join("lakebed.json"));
    let mut new = File::create(&beside)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    fs::rename(&beside, &file).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_once_kept_and_held_by_one() {
        let home = std::env::temp_dir().join(format!("lakebed-layout-{}", std::process::id()));
        let first = UpDirectory::take(home.clone(), 3, 2).unwrap();
        assert!(first.fresh && first.layout.safekeeper_ports.len() == 3);
        let error = UpDirectory::take(home.clone(), 3, 2).unwrap_err().to_string();
        assert!(error.contains("runs already"), "{error}");
        let layout = first.layout.clone();
        drop(first);
        let again = UpDirectory::take(home.clone(), 1, 4).unwrap();
        assert_eq!((again.fresh, &again.layout), (false, &layout));
        drop(again);
        let more = UpDirectory::take(home.clone(), 5, 4).unwrap().layout.clone();
        assert_eq!(more, UpDirectory::take(home.clone(), 3, 2).unwrap().layout);
        assert_eq!(more.safekeeper_ports.len(), 5);
        assert_eq!(more.safekeeper_ports[..3], layout.safekeeper_ports);
        // The services of the others stay where they were.
        assert_eq!(more.admin_ports[..4], layout.admin_ports[..4]);
        assert_eq!(more.admin_ports[6..], layout.admin_ports[4..]);
        assert_eq!(more.pageserver_ports, layout.pageserver_ports);
        let newer = fs::read_to_string(home.join("lakebed.json"))
            .unwrap()
            .replace("\"format\": 1", "\"format\": 9");
        fs::write(home.join("lakebed.json"), newer).unwrap();
        let error = UpDirectory::take(home.clone(), 3, 2).unwrap_err().to_string();
        assert!(error.contains("format 9"), "{error}");
        fs::write(home.join("lakebed.json"), "{").unwrap();
        assert!(UpDirectory::take(home.clone(), 3, 2).is_err());
        fs::remove_file(home.join("lakebed.json")).unwrap();
        let error = UpDirectory::take(home.clone(), 3, 2).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        fs::remove_dir_all(home).unwrap();
    }
}
