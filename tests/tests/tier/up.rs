//! `lakebed up` and `./run`, as a person uses them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use lakebed_pgtest::{Installation, bin_dir, program, run, temp_dir, wait_until};
use lakebed_tests::{build_dir, free_port, http_get, lakebed};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A running `lakebed up`.
struct Up {
    child: Child,
    connection: String,
}

fn up_command(directory: &Path, port: u16) -> Command {
    up_command_with(&Installation::default_15(), directory, port)
}

fn up_command_with(postgres: &Installation, directory: &Path, port: u16) -> Command {
    let mut command = Command::new(build_dir().join("lakebed"));
    command
        .arg("up")
        .arg("--dir")
        .arg(directory)
        .arg(format!("--pg-port={port}"));
    command
        .arg("--pg-bin")
        .arg(&postgres.bin_dir)
        .stdin(Stdio::null());
    command
}

impl Up {
    fn start(directory: &Path, port: u16) -> Up {
        Up::start_with(&Installation::default_15(), directory, port)
    }

    fn start_with(postgres: &Installation, directory: &Path, port: u16) -> Up {
        let log = directory.with_extension("err");
        let mut command = up_command_with(postgres, directory, port);
        command
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log"));
        let mut child = command.spawn().expect("lakebed up");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output"))
            .read_line(&mut line)
            .expect("a line");
        let connection = line.trim_end().strip_prefix("connection: ").map(str::to_owned);
        let connection = connection
            .unwrap_or_else(|| panic!("`{line}`: {}", fs::read_to_string(&log).unwrap_or_default()));
        Up { child, connection }
    }

    fn sql(&self, statement: &str) -> String {
        sql(&self.connection, statement)
    }

    /// As Ctrl-C does.
    fn interrupt(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("a signal");
        let mut status = None;
        wait_until("lakebed up to end", || {
            status = self.child.try_wait().expect("its state");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
    }
}

fn sql(connection: &str, statement: &str) -> String {
    let mut psql = program("psql");
    psql.current_dir("/")
        .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement, connection]);
    run(&mut psql).trim_end().to_owned()
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a start that must fail says.
fn refused(command: &mut Command) -> String {
    let output = command.output().expect("lakebed up");
    assert!(!output.status.success(), "{command:?} did not fail");
    assert!(output.stdout.is_empty(), "data on standard output");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn children_of(pid: u32) -> Vec<(i32, String)> {
    // A child belongs to the thread that started it.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let children = |thread: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(thread.expect("a thread").path().join("children")).unwrap_or_default()
    };
    let tasks: String = threads.map(children).collect();
    let child = |pid: &str| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Some((pid.parse().ok()?, command.replace('\0', " ")))
    };
    tasks.split_whitespace().filter_map(child).collect()
}

#[test]
fn up_serves_resumes_and_refuses_in_words() {
    let home = temp_dir();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("a directory for all");
    let (directory, port) = (home.path().join("up"), free_port());
    let dir = format!("--dir={}", directory.display());

    let mut without_postgres = Command::new(build_dir().join("lakebed"));
    let missing = refused(without_postgres.args(["up", "--pg-bin=/nowhere", &dir]));
    assert!(
        missing.contains("/nowhere/postgres") && missing.contains("postgresql-15"),
        "{missing}"
    );
    let busy = TcpListener::bind(("127.0.0.1", port)).expect("the port");
    let taken = refused(&mut up_command(&directory, port));
    assert!(
        taken.contains(&format!("port {port}")) && taken.contains("--pg-port"),
        "{taken}"
    );
    drop(busy);

    let up = Up::start(&directory, port);
    up.sql("create table t as select generate_series(1, 1000) n");
    let second = refused(&mut up_command(&directory, free_port()));
    assert!(second.contains("runs already"), "{second}");

    lakebed(&["branch", "create", "side", &dir]);
    let side: Value =
        serde_json::from_str(&lakebed(&["--json", "compute", "start", "side", &dir])).expect("JSON");
    let side = side["connection"].as_str().expect("a connection").to_owned();
    let mut psql = program("psql");
    assert_eq!(
        run(psql
            .current_dir("/")
            .args(["-XqAtc", "delete from t returning 1", &side]))
        .lines()
        .count(),
        1000
    );
    assert_eq!(up.sql("select count(*) from t"), "1000");

    let status: Value = serde_json::from_str(&lakebed(&["--json", "status", &dir])).expect("JSON");
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(5), "{status}");
    assert_eq!(status["computes"].as_array().map(Vec::len), Some(2), "{status}");

    // Every process has its admin pages.
    let mut admins: Vec<String> = status["computes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|compute| compute["admin"].as_str().expect("an address").to_owned())
        .collect();
    let layout = fs::read_to_string(directory.join("lakebed.json")).expect("lakebed.json");
    let layout: Value = serde_json::from_str(&layout).expect("JSON");
    let ports = layout["admin_ports"].as_array().expect("ports").iter();
    admins.extend(ports.map(|port| format!("127.0.0.1:{port}")));
    assert_eq!(admins.len(), 8);
    for admin in &admins {
        assert_eq!(http_get(admin, "/healthz"), "ok\n");
        assert!(http_get(admin, "/metrics").ends_with("# EOF\n"), "{admin}");
        serde_json::from_str::<Value>(&http_get(admin, "/v1/status")).expect("JSON");
    }

    // As it was, read by a compute of its own, as often as asked for.
    let then = up.sql("select pg_current_wal_flush_lsn()");
    up.sql("update t set n = n + 1");
    let at = ["--json", "compute", "start", "main", "--at-lsn", &then, &dir];
    let reader: Value = serde_json::from_str(&lakebed(&at)).expect("JSON");
    assert_eq!(
        reader,
        serde_json::from_str::<Value>(&lakebed(&at)).expect("JSON")
    );
    assert_eq!(reader["read_only"], true);
    let connection = reader["connection"].as_str().expect("a connection");
    assert_eq!(sql(connection, "select min(n), max(n) from t"), "1|1000");
    let write = program("psql")
        .current_dir("/")
        .args(["-XqAtc", "delete from t", connection])
        .output()
        .expect("psql");
    let write = String::from_utf8_lossy(&write.stderr).into_owned();
    assert!(write.contains("read-only transaction"), "{write}");
    let name = reader["branch"].as_str().expect("a name").to_owned();
    let mut for_writing = Command::new(build_dir().join("lakebed"));
    let runs = refused(for_writing.args(["compute", "start", &name, &dir]));
    assert!(
        runs.contains("read-only") && runs.contains("stop it first"),
        "{runs}"
    );
    lakebed(&["compute", "stop", &name, &dir]);
    let branches = lakebed(&["--json", "branch", "list", &dir]);
    let made = branches
        .lines()
        .find(|line| line.contains(&name))
        .expect("the branch");
    let made: Value = serde_json::from_str(made).expect("JSON");
    assert!(made["expires"].is_string() && made["parent"] == "main", "{made}");
    lakebed(&["branch", "delete", &name, &dir]);

    // A daemon that dies is started again, and nobody notices.
    let find = |what: &str| {
        children_of(up.child.id())
            .into_iter()
            .find(|(_, command)| command.contains(what))
    };
    let (pid, _) = find("safekeeper-2.toml").expect("a safekeeper");
    kill_process(Pid::from_raw(pid).expect("a process"), Signal::KILL).expect("a signal");
    up.sql("insert into t values (1001)");
    wait_until("the safekeeper to be started again", || {
        find("safekeeper-2.toml").is_some_and(|(again, _)| again != pid)
    });
    lakebed(&["compute", "stop", "side", &dir]);
    lakebed(&["branch", "delete", "side", &dir]);
    let all = children_of(up.child.id());
    up.interrupt();
    assert!(
        all.iter().all(|(pid, _)| !lakebed_tests::process_exists(*pid)),
        "a child outlives lakebed up"
    );

    let up = Up::start(&directory, port);
    assert_eq!(up.sql("select count(*) from t"), "1001");
    up.interrupt();

    let file = directory.join("lakebed.json");
    let text = fs::read_to_string(&file).expect("lakebed.json");
    fs::write(&file, text.replace("\"format\": 1", "\"format\": 2")).expect("lakebed.json");
    let newer = refused(&mut up_command(&directory, port));
    assert!(
        newer.contains("format 2") && newer.contains("Nothing was changed"),
        "{newer}"
    );
    fs::write(&file, text).expect("lakebed.json");
    let up = Up::start(&directory, port);
    assert_eq!(up.sql("select count(*) from t"), "1001");
    up.interrupt();
}

/// The help of `./run` is text, so that it needs no build; it must not forget an option.
#[test]
fn the_help_of_run_is_complete() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let help = run(Command::new(root.join("run")).arg("--help"));
    let options = |text: &str| {
        let words = text.split_whitespace().filter(|word| word.starts_with("--"));
        let mut options: Vec<String> = words
            .map(|word| {
                word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric())
                    .to_owned()
            })
            .collect();
        options.sort();
        options.dedup();
        options
    };
    let told = options(&help);
    for option in options(&lakebed(&["up", "--help"])) {
        let told = told.contains(&option) || option == "--version";
        assert!(told, "`./run --help` does not tell about {option}");
    }
}

/// A compute with its TOML file, as under systemd.
#[test]
fn a_compute_starts_from_its_file() {
    let tier = lakebed_tests::Tier::start(&lakebed_tests::Shape::default());
    let (file, port) = (tier.home().join("compute.toml"), free_port());
    let text = format!(
        "[compute]\nconnect = '{}'\ndir = '{}'\npg_bin = '{}'\npg_port = {port}\nadmin_listen = '127.0.0.1:0'\n\
         settings = ['work_mem=5MB']\n",
        tier.connect("main"),
        tier.home().join("compute").display(),
        bin_dir().display()
    );
    fs::write(&file, text).expect("a file");
    let arguments = ["compute".to_owned(), format!("--config={}", file.display())];
    let process = lakebed_tests::Process::start("compute", &arguments, &tier.home().join("compute.log"));
    let mut psql = program("psql");
    psql.current_dir("/").args(["-XqAtc", "show work_mem"]);
    psql.args([
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-U",
        "postgres",
        "postgres",
    ]);
    assert_eq!(run(&mut psql).trim_end(), "5MB");
    assert!(process.stop().success());
}

/// `lakebed up` with another version than 15, and beside it a tenant of a third; each with its own programs only.
#[test]
fn up_serves_another_version_and_starts_computes_of_a_third() {
    let home = temp_dir();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("a directory for all");
    let (directory, port) = (home.path().join("up"), free_port());
    let dir = format!("--dir={}", directory.display());
    let [old, new] = [(17, 11), (18, 6)].map(|(major, minor)| Installation::need(major, minor));
    let up = Up::start_with(&old, &directory, port);
    up.sql("create table t as select generate_series(1, 1000) n");
    assert!(up.sql("show server_version").starts_with("17."));

    let of_new = format!("--pg-bin={}", new.bin_dir.display());
    lakebed(&["tenant", "create", "other", &of_new, &dir]);
    let start = |arguments: &[&str]| {
        let mut command = Command::new(build_dir().join("lakebed"));
        command
            .args(["compute", "start", "other/main", &dir])
            .args(arguments);
        command
    };
    // Without programs of its own it would be one of `lakebed up`.
    let said = refused(&mut start(&[]));
    assert!(
        said.contains("branch other/main was made by Postgres 18") && said.contains("is Postgres 17"),
        "{said}"
    );
    let started = run(&mut start(&[&of_new]));
    let connection = started
        .trim_end()
        .strip_prefix("connection: ")
        .expect("a connection");
    assert!(sql(connection, "show server_version").starts_with("18."));
    sql(connection, "create table t as select 'eighteen' as of");
    let said = refused(&mut start(&[&format!("--pg-bin={}", old.bin_dir.display())]));
    assert!(said.contains("stop it first"), "{said}");
    lakebed(&["compute", "stop", "other/main", &dir]);
    // It keeps its programs and its port.
    assert_eq!(run(&mut start(&[])).trim_end(), started.trim_end());
    assert_eq!(sql(connection, "select of from t"), "eighteen");
    up.interrupt();

    // The directory was made by 17.
    let said = refused(&mut up_command_with(&new, &directory, port));
    assert!(
        said.contains("branch default/main was made by Postgres 17") && said.contains("is Postgres 18"),
        "{said}"
    );
    let up = Up::start_with(&old, &directory, port);
    assert_eq!(up.sql("select count(*) from t"), "1000");
    up.interrupt();
}
