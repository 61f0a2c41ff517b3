//! Which Postgres programs there are, of which version and where.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs, thread};

use crate::{other_user, run};

/// Clients that speak to a server of any version, so that those of another installation will do.
const CLIENTS: [&str; 3] = ["psql", "pgbench", "pg_isready"];

/// Directory of the programs of version 15: `PG_BIN`, or where Debian puts them.
pub fn bin_dir() -> PathBuf {
    let dir = bin_dir_15();
    assert!(
        dir.join("postgres").exists(),
        "no Postgres in {}: install postgresql-15, or set PG_BIN to the directory of its programs",
        dir.display()
    );
    dir
}

fn bin_dir_15() -> PathBuf {
    env::var_os("PG_BIN").map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from)
}

/// A command that runs one of the programs of version 15 as a user that Postgres accepts.
pub fn program(name: &str) -> Command {
    as_postgres(&bin_dir().join(name))
}

/// A command that runs any program as a user that Postgres accepts.
pub fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = other_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// Where `tests/postgres-builds` keeps what it provides; the rule is the script's.
fn cache_dir() -> PathBuf {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = set("LAKEBED_POSTGRES_BUILDS") {
        return dir;
    }
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/cache/lakebed/postgres");
    }
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .expect("HOME, XDG_CACHE_HOME or LAKEBED_POSTGRES_BUILDS must be set")
        .join("lakebed/postgres")
}

/// The programs of one release of Postgres.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Installation {
    /// Major version, as in 17 of `17.11`.
    pub major: u16,
    /// Minor release, as in 11 of `17.11`.
    pub minor: u16,
    /// Directory of its programs.
    pub bin_dir: PathBuf,
}

impl Installation {
    /// What is served where nothing else is asked for: see [`bin_dir`].
    pub fn default_15() -> Installation {
        Installation::in_dir(bin_dir())
    }

    /// Every installation that there is, the lowest version first: version 15 and what `tests/postgres-builds` made.
    pub fn all() -> Vec<Installation> {
        let cached = fs::read_dir(cache_dir()).into_iter().flatten();
        let mut all: Vec<Installation> = cached
            .map(|entry| entry.expect("an entry of the cache of builds").path().join("bin"))
            .chain([bin_dir_15()])
            .filter(|bin| bin.join("postgres").exists())
            .map(Installation::in_dir)
            .collect();
        all.sort();
        all
    }

    /// Runs a test against every installation, as many at a time as there are processors.
    ///
    /// # Panics
    /// When the test does, in a thread that has the installation's name.
    pub fn each(test: impl Fn(&Installation) + Sync) {
        let at_a_time = thread::available_parallelism().map_or(1, usize::from);
        for some in Installation::all().chunks(at_a_time) {
            thread::scope(|scope| {
                for installation in some {
                    let thread = thread::Builder::new().name(format!("Postgres {installation}"));
                    let started = thread.spawn_scoped(scope, || test(installation));
                    started.expect("a thread");
                }
            });
        }
    }

    /// The lowest release of that major version that is at least this one.
    ///
    /// # Panics
    /// When there is none, with the command that provides it.
    pub fn need(major: u16, minor: u16) -> Installation {
        let found = Installation::all()
            .into_iter()
            .find(|one| one.major == major && one.minor >= minor);
        found.unwrap_or_else(|| {
            panic!("Postgres {major}.{minor} is not here: run `tests/postgres-builds {major}.{minor}`")
        })
    }

    fn in_dir(bin_dir: PathBuf) -> Installation {
        let printed = run(Command::new(bin_dir.join("postgres")).arg("--version"));
        // "postgres (PostgreSQL) 15.18 (whose build it is)"
        let version = printed.split_whitespace().nth(2).and_then(|version| {
            let (major, minor) = version.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        let (major, minor) =
            version.unwrap_or_else(|| panic!("{}: no release of Postgres: {printed}", bin_dir.display()));
        Installation {
            major,
            minor,
            bin_dir,
        }
    }

    /// A command that runs one of its programs as a user that Postgres accepts. A client that speaks to any version
    /// (`psql`, `pgbench`, `pg_isready`) is another installation's where this one has none.
    pub fn program(&self, name: &str) -> Command {
        let own = self.bin_dir.join(name);
        if own.exists() || !CLIENTS.contains(&name) {
            return as_postgres(&own);
        }
        let others = Installation::all();
        // The latest, as clients know the servers before them.
        let other = others
            .iter()
            .rev()
            .map(|other| other.bin_dir.join(name))
            .find(|other| other.exists());
        as_postgres(&other.unwrap_or_else(|| panic!("no installation of Postgres has {name}")))
    }

    /// Whether heap records of this release name the pages of the visibility map whose bits they clear.
    pub fn names_map_pages(&self) -> bool {
        match self.major {
            ..=16 => false,
            17 => self.minor >= 11,
            18 => self.minor >= 6,
            19.. => true,
        }
    }

    /// Directory of Postgres's own suites for this release: `regress` and `isolation` below it have the programs and
    /// the files.
    ///
    /// # Panics
    /// When it is missing, with the command that provides it.
    pub fn suites(&self) -> PathBuf {
        let dir = cache_dir().join(self.to_string()).join("suites");
        assert!(
            dir.exists(),
            "the suites of Postgres {self} are not here: run `tests/postgres-builds --suites`"
        );
        dir
    }
}

/// The version, as in `17.11`.
impl fmt::Display for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
