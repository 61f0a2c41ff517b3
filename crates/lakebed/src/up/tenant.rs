//! The first tenant: `initdb`, imported.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use lakebed_controller::bootstrap::{NewTenant, create_tenant};

use super::layout::UpDirectory;

/// Name of the tenant that `lakebed up` makes.
pub const TENANT: &str = "default";
/// Name of its first branch.
pub const BRANCH: &str = "main";
/// How long the import may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs `initdb` and imports what it made, unless the tenant is there already.
///
/// # Errors
/// `initdb` fails, or the tier does not take its output.
pub async fn ensure(
    directory: &UpDirectory,
    pg_bin: &Path,
    owner: Option<(u32, u32)>,
    shards: u32,
    safekeepers: u32,
) -> anyhow::Result<()> {
    let done = directory.path.join("imported");
    if done.exists() {
        return Ok(());
    }
    let home = directory.path.join("initdb");
    let _ = fs::remove_dir_all(&home);
    fs::create_dir(&home).with_context(|| format!("creating {}", home.display()))?;
    if let Some((uid, gid)) = owner {
        chown(&home, Some(uid), Some(gid))?;
    }
    let data = home.join("data");
    initdb(pg_bin, &data, &home, owner)?;
    let tenant = NewTenant {
        name: TENANT.to_owned(),
        branch: BRANCH.to_owned(),
        shards,
        safekeepers,
    };
    create_tenant(&directory.layout.controller(), &tenant, &data, PATIENCE)
        .await
        .context("making the first tenant")?;
    fs::write(&done, "")?;
    let _ = fs::remove_dir_all(&home);
    Ok(())
}

fn initdb(pg_bin: &Path, data: &Path, home: &Path, owner: Option<(u32, u32)>) -> anyhow::Result<()> {
    let mut initdb = Command::new(pg_bin.join("initdb"));
    // Its output is imported and then removed: nothing has to be synced. Data checksums would make hint bits cost
    // page images; the tier checks what it stores by itself.
    initdb.args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "-N",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
        "-D",
    ]);
    initdb.arg(data).current_dir(home).env("TZ", "UTC");
    if let Some((uid, gid)) = owner {
        initdb.uid(uid).gid(gid);
    }
    let output = initdb.output().context("running initdb")?;
    if !output.status.success() {
        bail!(
            "initdb failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
