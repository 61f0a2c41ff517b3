//! Configuration that people edit in the data directory: carried to the tier, for the next compute has another one.
//!
//! Postgres itself writes only `postgresql.auto.conf`, by a rename that the shim sees. The others change under an
//! editor, so they are looked at every second, and once more when Postgres has stopped.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use lakebed_types::Term;

use crate::catalogue::CatalogueClient;
use crate::data_dir::OWN_CONFIG;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Longer files are not configuration.
const MAX_BYTES: u64 = 1 << 20;
/// What names end in: settings, and what TLS needs (`ssl_cert_file` and its like).
const ENDINGS: [&str; 5] = [".conf", ".crt", ".key", ".pem", ".crl"];

/// See the module header.
#[derive(Debug)]
pub struct ConfigFiles {
    data: PathBuf,
    catalogue: CatalogueClient,
    term: Term,
    known: BTreeMap<String, Vec<u8>>,
}

impl ConfigFiles {
    /// What is there now is what the tier has.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn new(data: &Path, catalogue: CatalogueClient, term: Term) -> io::Result<ConfigFiles> {
        Ok(ConfigFiles {
            data: data.to_owned(),
            catalogue,
            term,
            known: read(data)?,
        })
    }

    /// Looks again and again, for ever.
    pub async fn follow(&mut self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            self.carry().await;
        }
    }

    /// Carries what has changed. A failure is logged, and tried again at the next look.
    pub async fn carry(&mut self) {
        let now = match read(&self.data) {
            Ok(now) => now,
            Err(error) => return tracing::warn!(%error, "looking at configuration files"),
        };
        for (path, content) in now {
            if self.known.get(&path) == Some(&content) {
                continue;
            }
            match self
                .catalogue
                .put_file(self.term, &path, Some(content.clone()))
                .await
            {
                Ok(()) => {
                    tracing::info!(path, "configuration changed; the tier has it");
                    self.known.insert(path, content);
                }
                Err(status) => {
                    let error = status.message();
                    tracing::warn!(
                        path,
                        error,
                        "configuration changed and could not be carried to the tier"
                    );
                }
            }
        }
    }
}

/// Configuration files by name.
fn read(data: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let ours = name == OWN_CONFIG || name == "postgresql.auto.conf";
        if ours || !ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        // An editor may have taken it away for a moment.
        let Ok(status) = entry.metadata() else { continue };
        if !status.is_file() || status.len() > MAX_BYTES {
            continue;
        }
        match fs::read(entry.path()) {
            Ok(content) => files.insert(name, content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_edit_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let names = [
            "pg_hba.conf",
            "postgresql.auto.conf",
            "lakebed.conf",
            "server.key",
            "PG_VERSION",
            "postmaster.pid",
        ];
        for name in names {
            fs::write(home.path().join(name), name).unwrap();
        }
        fs::create_dir(home.path().join("dir.conf")).unwrap();
        let found: Vec<String> = read(home.path()).unwrap().into_keys().collect();
        assert_eq!(found, ["pg_hba.conf", "server.key"]);
    }
}
