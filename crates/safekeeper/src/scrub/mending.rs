//! Timelines that do not work because their WAL is damaged, made whole and started again.
//!
//! A member that acknowledged WAL and lost it must not vote or take WAL before it has it again: with less than it said it
//! could elect a log without what it made committed. So it stays stopped, and this task asks the other members and object
//! storage, again and again, until the timeline reads well up to what was durable. Nobody has to do anything, and the
//! other members go on meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakebed_types::Lsn;

use super::heal::{self, Missing};
use super::sources::{self, Remedy};
use crate::control_file;
use crate::recovery::{self, Damage};
use crate::server::Safekeeper;
use crate::timeline::{self, LoadError, Loaded, Timeline, wal_format};
use crate::wal_files::WalFiles;

/// The pause between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// Works until the safekeeper ends.
pub(crate) async fn run(safekeeper: Arc<Safekeeper>) {
    let ending = safekeeper.ending().clone();
    let rounds = async {
        loop {
            for timeline in safekeeper.timelines() {
                let damage = timeline.view().borrow().damage.clone();
                if let Some(damage) = damage {
                    mend(&safekeeper, &timeline, damage).await;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = rounds => {}
        () = ending.cancelled() => {}
    }
}

/// Heals one place after the other; the timeline works again, or says why it does not.
async fn mend(safekeeper: &Safekeeper, timeline: &Arc<Timeline>, mut damage: Damage) {
    let durable = damage.below;
    loop {
        let before = damage.after.lsn;
        match once(safekeeper, timeline, &damage, durable).await {
            Ok((source, loaded)) => {
                let (name, at) = (timeline.name.1, damage.after.lsn);
                tracing::info!(timeline = %name, %at, source, "WAL was healed");
                safekeeper.metrics().scrub_healed.inc();
                match loaded {
                    Ok(loaded) => return safekeeper.restart(timeline, *loaded).await,
                    Err(LoadError::Damaged(next)) if next.after.lsn > before => damage = next,
                    Err(LoadError::Damaged(next)) => {
                        let why = format!("it reads no better afterwards: {}", next.reason);
                        return timeline.still_damaged(damage, &why);
                    }
                    Err(error) => return timeline.cannot_be_mended(&error.to_string()),
                }
            }
            Err(why) => return timeline.still_damaged(damage, &why),
        }
    }
}

type Outcome = (String, Result<Box<Loaded>, LoadError>);

/// One try: who helped, and what the timeline is like then.
async fn once(
    safekeeper: &Safekeeper,
    timeline: &Timeline,
    damage: &Damage,
    durable: Lsn,
) -> Result<Outcome, String> {
    let directory = safekeeper.directory(timeline.name);
    let from = directory.clone();
    let own = blocking(move || control_file::load(&from)).await?;
    let own = own.map_err(|error| error.to_string())?;
    let files = WalFiles::new(&directory, wal_format(&own), own.truncate);
    let place = (damage.after.lsn, damage.below);
    let mut durable = durable;
    let source = sources::find(safekeeper, timeline.name, &own, place, |remedy| {
        let (files, damage, directory) = (files.clone(), damage.clone(), directory.clone());
        if matches!(remedy, Remedy::Cut) {
            durable = damage.after.lsn;
        }
        async move { blocking(move || apply(&files, &directory, &damage, &remedy)).await? }
    });
    let source = source.await?;
    let commit = own.commit;
    let loaded = blocking(move || {
        // A load reads little of what is committed; what was missing there is to be whole.
        recovery::check_committed(&files, commit, durable)?;
        timeline::load(&directory, durable)
    });
    let loaded = loaded.await?;
    Ok((source, loaded.map(Box::new)))
}

fn apply(files: &WalFiles, directory: &Path, damage: &Damage, remedy: &Remedy) -> Result<(), String> {
    match remedy {
        Remedy::Wal(wal) => heal::replace(files, damage.after, wal, Missing::Create),
        Remedy::Cut => timeline::cut(directory, damage.after.lsn).map_err(|error| error.to_string()),
    }
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(job)
        .await
        .map_err(|error| error.to_string())
}
