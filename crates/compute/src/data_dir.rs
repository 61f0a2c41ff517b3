//! A fresh data directory, from the basebackup.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lakebed_proto::v1;
use lakebed_types::data_directory::is_inside;
use tonic::Streaming;

use crate::own_config::{self, OwnSettings};

/// Settings that the sidecar owns but that may be switched while Postgres runs; everything else that safety needs is
/// on the command line.
pub const OWN_CONFIG: &str = "lakebed.conf";
const INCLUDE: &str = "include_if_exists = 'lakebed.conf'";

/// Whose files are written, when this process is root.
pub type Owner = Option<(u32, u32)>;

/// Ids of the user that Postgres runs as. None when this process is not root and runs it as itself.
///
/// # Errors
/// There is no such user.
pub fn owner_of(user: &str) -> anyhow::Result<Owner> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        (name == user).then_some((uid, gid))
    });
    let ids = ids.with_context(|| {
        format!("Postgres refuses to run as root and there is no user `{user}`: create it, or name another (--run-as)")
    })?;
    Ok(Some(ids))
}

/// Gives a path to its owner.
///
/// # Errors
/// The path is gone.
pub fn give(path: &Path, owner: Owner) -> io::Result<()> {
    match owner {
        Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

/// Makes a directory and its missing parents, each given to the owner.
///
/// # Errors
/// The disk is full, or something that is no directory is in the way.
pub fn make_directories(path: &Path, owner: Owner) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    for directory in missing.into_iter().rev() {
        match fs::create_dir(directory) {
            Ok(()) => {
                fs::set_permissions(directory, Permissions::from_mode(0o700))?;
                give(directory, owner)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Receives a basebackup into `data`, which must not exist. Tablespaces become directories below `tablespaces`. Returns the
/// files that came without their pages, with their sizes in bytes; they are not made.
///
/// # Errors
/// The stream breaks, the disk is full, or a path leads elsewhere.
pub async fn receive(
    mut chunks: Streaming<v1::FileChunk>,
    data: &Path,
    tablespaces: &Path,
    owner: Owner,
) -> anyhow::Result<HashMap<String, u64>> {
    make_directories(data, owner).with_context(|| format!("creating {}", data.display()))?;
    let mut on_demand = HashMap::new();
    let mut open: Option<(PathBuf, File)> = None;
    while let Some(chunk) = chunks.message().await.context("receiving the basebackup")? {
        let relative = chunk.path.trim_end_matches('/');
        if !is_inside(relative) {
            bail!("the basebackup has a file `{}`, which is outside", chunk.path);
        }
        let path = data.join(relative);
        let failed = || format!("writing {}", path.display());
        if !chunk.link_target.is_empty() {
            let name = path.file_name().unwrap_or_default();
            let target = tablespaces.join(name);
            make_directories(&target, owner).with_context(failed)?;
            symlink(&target, &path).with_context(failed)?;
            let from = String::from_utf8_lossy(&chunk.link_target).into_owned();
            tracing::info!(tablespace = %String::from_utf8_lossy(name.as_bytes()), from, to = %target.display(), "tablespace");
            continue;
        }
        if chunk.on_demand {
            on_demand.insert(chunk.path, chunk.file_bytes);
            continue;
        }
        if chunk.path.ends_with('/') {
            make_directories(&path, owner).with_context(failed)?;
            continue;
        }
        if open.as_ref().is_none_or(|(open, _)| *open != path) {
            if let Some(directory) = path.parent() {
                make_directories(directory, owner).with_context(failed)?;
            }
            let file = File::create(&path).with_context(failed)?;
            file.set_permissions(Permissions::from_mode(0o600))
                .with_context(failed)?;
            give(&path, owner).with_context(failed)?;
            open = Some((path.clone(), file));
        }
        if let Some((_, file)) = &open {
            file.write_all_at(&chunk.data, chunk.offset)
                .with_context(failed)?;
            if chunk.last && chunk.file_bytes > 0 {
                file.set_len(chunk.file_bytes).with_context(failed)?;
            }
        }
        if chunk.last {
            open = None;
        }
    }
    configure(data, owner).context("writing the configuration")?;
    Ok(on_demand)
}

fn configure(data: &Path, owner: Owner) -> io::Result<()> {
    own_config::write(data, owner, &OwnSettings::default())?;
    let main = data.join("postgresql.conf");
    let text = fs::read_to_string(&main).unwrap_or_default();
    if !text.lines().any(|line| line.trim() == INCLUDE) {
        let mut file = File::options().create(true).append(true).open(&main)?;
        writeln!(file, "\n{INCLUDE}")?;
        give(&main, owner)?;
    }
    Ok(())
}
