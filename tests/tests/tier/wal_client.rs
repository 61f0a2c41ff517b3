//! An ordinary Postgres, started by nobody of the tier, under the protection of `lakebed wal-client`.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop, wait_until};
use lakebed_tests::comparison::{Writer, compare};
use lakebed_tests::pages::Pages;
use lakebed_tests::recorder::Recorder;
use lakebed_tests::{Process, Shape, Tier, free_port};
use lakebed_types::{ForkNumber, Lsn, PageKey, RelTag};
use serde_json::Value;

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no LSN"))
}

/// The protected server: its settings are as anybody's, but for its port.
struct Server {
    cluster: Cluster,
    port: u16,
}

impl Server {
    fn start(installation: &Installation, checksums: bool) -> Server {
        Server::start_with(installation, checksums, &[])
    }

    fn start_with(installation: &Installation, checksums: bool, settings: &[&str]) -> Server {
        let options = InitOptions {
            data_checksums: checksums,
            arguments: Vec::new(),
        };
        let mut server = Server {
            cluster: Cluster::init_with(installation, &options),
            port: free_port(),
        };
        // Logins that ask for a password, over TCP, where the client comes from.
        let hba = server.cluster.data_dir().join("pg_hba.conf");
        let asked = "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 trust\n\
                     host replication md5 127.0.0.1/32 md5\nhost replication all 127.0.0.1/32 scram-sha-256\n";
        fs::write(hba, asked).expect("pg_hba.conf");
        // In the file, so that computes on branches have it too.
        let conf = server.cluster.data_dir().join("postgresql.conf");
        let mut text = fs::read_to_string(&conf).expect("postgresql.conf");
        text.push_str("\nmax_prepared_transactions = 4\n");
        fs::write(conf, text).expect("postgresql.conf");
        server.up(settings);
        server.cluster.sql(
            "create role keeper replication login password 'a p@ss';\n\
             set password_encryption = 'md5'; create role md5 replication login password 'm';",
        );
        server
    }

    fn up(&mut self, more: &[&str]) {
        let mut settings = vec!["checkpoint_timeout=30s"];
        settings.extend(more);
        self.cluster.start_on(self.port, &settings);
    }

    fn url(&self) -> String {
        format!("postgresql://keeper:a%20p%40ss@127.0.0.1:{}/", self.port)
    }

    /// Everything written so far.
    fn end(&self) -> Lsn {
        lsn(&self.cluster.sql("select pg_current_wal_flush_lsn()"))
    }
}

fn client(tier: &Tier, server: &str, more: &[&str]) -> Process {
    let mut arguments = vec![
        "wal-client".to_owned(),
        format!("--from={server}"),
        "--tenant=test".to_owned(),
        format!("--connect=lakebed://{}", tier.controller()),
    ];
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    Process::start("wal-client", &arguments, &tier.home().join("wal-client.log"))
}

fn position(status: &Value, name: &str) -> Lsn {
    status[name].as_str().map_or(Lsn(0), lsn)
}

/// Waits until a quorum has everything up to `end`.
fn committed(client: &Process, end: Lsn) {
    let what = format!("the quorum to have WAL up to {end}: {}", client.status());
    wait_until(&what, || position(&client.status(), "committed_lsn") >= end);
}

/// A branch at `at` equals the server's files, page by page. The server has been stopped at `at`, cleanly.
fn compare_with_files(tier: &Tier, branch: &str, at: Lsn, directory: &Path) {
    let writer = Writer::Primary {
        copied_by_wal: Default::default(),
    };
    let result = compare(&Pages::of(tier, branch), at, directory, &writer);
    result.assert_equal();
    assert!(result.relation_pages() > 1000, "{result}");
}

fn pgbench(server: &Server, arguments: &[&str]) -> std::process::Child {
    let mut pgbench = server.cluster.client("pgbench");
    pgbench
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .args(arguments);
    pgbench.spawn().expect("pgbench")
}

fn count(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no count"))
}

fn history(server: &Server, count: u64) {
    wait_until(&format!("{count} transactions"), || {
        let found = server.cluster.sql("select count(*) from pgbench_history");
        found.parse::<u64>().expect("a count") >= count
    });
}

/// A base backup under load, streaming, a branch at the head with a compute on it, and one in the past.
fn protects(installation: &Installation, checksums: bool) {
    let mut server = Server::start(installation, checksums);
    let init = pgbench(&server, &["-i", "-q", "-s", "4"])
        .wait()
        .expect("pgbench");
    assert!(init.success());
    server
        .cluster
        .sql("create unlogged table fleeting as select 1; create index on pgbench_accounts (abalance)");
    server
        .cluster
        .sql("begin; insert into pgbench_history (tid, delta) values (-1, 0); prepare transaction 'p'");
    let mut load = pgbench(&server, &["-n", "-c", "2", "-T", "600"]);
    let shape = Shape {
        postgres: installation.clone(),
        ..Shape::default()
    };
    let tier = Tier::without_tenant(&shape);
    let keeper = client(&tier, &server.url(), &["--shards=2"]);
    wait_until("the stream", || keeper.status()["phase"] == "streaming");
    let status = keeper.status();
    let consistent = lsn(status["base_backup"]["consistent_lsn"].as_str().expect("an LSN"));
    assert_eq!(status["synchronous"], false, "{status}");
    assert!(
        status["base_backup"]["bytes"].as_u64() > Some(20 << 20),
        "{status}"
    );
    assert!(keeper.metrics().contains("wal_client_lag_bytes"));
    // What a pageserver took in is in layers.
    for name in tier.names("pageserver") {
        let bytes = tier.status(&name)["timelines"][0]["layer_bytes"].as_u64();
        assert!(bytes > Some(200_000), "{name}: {bytes:?} bytes of layers");
    }

    // Not before the backup's end.
    committed(&keeper, server.end());
    let main = Pages::of(&tier, "main");
    let early = tier.refused_client(&["branch", "create", "early", "--at-lsn", &main.start().to_string()]);
    assert!(early.contains("base backup"), "{early}");
    let class = RelTag {
        spcnode: 1664,
        dbnode: 0,
        relnode: 1262,
        fork: ForkNumber::Main,
    };
    let served = main.get(main.start(), &[PageKey::Rel { rel: class, block: 0 }]);
    let refused = served[0].as_ref().expect_err("a page inside of the base backup");
    assert!(refused.contains("base backup"), "{refused}");
    assert!(main.start() < consistent, "{} {consistent}", main.start());

    let so_far = count(&server.cluster.sql("select count(*) from pgbench_history"));
    history(&server, so_far + 200);
    server
        .cluster
        .sql("create table mark as select count(*) as n from pgbench_history");
    let then = server.end();
    let later = count(&server.cluster.sql("select count(*) from pgbench_history"));
    server.cluster.sql("drop table mark; vacuum pgbench_tellers");
    history(&server, later + 100);
    load.kill().expect("the end of pgbench");
    load.wait().expect("the end of pgbench");
    server.cluster.sql("rollback prepared 'p'; checkpoint");

    committed(&keeper, then);
    tier.client(&["branch", "create", "past", "--at-lsn", &then.to_string()]);
    let past = tier.compute("past", "past");
    let same = "select (select sum(abalance) from pgbench_accounts) = sum(delta) \
         and (select sum(bbalance) from pgbench_branches) = sum(delta) and count(*) >= (select n from mark) \
         from pgbench_history";
    assert_eq!(past.sql(&[same]), "t");
    let found = count(&past.sql(&["select count(*) from pgbench_history"]));
    assert!(
        (so_far + 200..=later).contains(&found),
        "{so_far} {found} {later}"
    );
    // Still prepared then.
    assert_eq!(past.sql(&["select gid from pg_prepared_xacts"]), "p");
    past.sql(&["insert into mark values (1)"]);
    past.stop();

    // A clean shutdown waits until the quorum has the last record; the files are complete then.
    let sums =
        "select count(*), sum(delta), (select sum(abalance) from pgbench_accounts) from pgbench_history";
    let expected = server.cluster.sql(sums);
    server.cluster.stop(Stop::Clean);
    let end = shutdown_end(&server, &keeper);
    compare_with_files(&tier, "main", end, &server.cluster.data_dir());
    tier.client(&["branch", "create", "head"]);
    let head = tier.compute("head", "head");
    assert_eq!(head.sql(&[sums]), expected);
    assert_eq!(head.sql(&["select count(*) from fleeting"]), "0");
    head.stop();

    // The server goes on, and so does the client by itself.
    server.up(&[]);
    server.cluster.sql("create table later as select 7 as n");
    committed(&keeper, server.end());
    assert!(keeper.stop().success());
}

/// End of the server's shutdown checkpoint, its last record: the quorum has whole records only.
fn shutdown_end(server: &Server, keeper: &Process) -> Lsn {
    let mut program = server.cluster.installation().program("pg_controldata");
    let text = lakebed_pgtest::run(program.env("LC_ALL", "C").arg(server.cluster.data_dir()));
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Latest checkpoint location:"));
    let start = lsn(line.expect("a checkpoint").trim());
    committed(keeper, Lsn(start.0 + 1));
    position(&keeper.status(), "committed_lsn")
}

#[test]
fn a_running_server_of_15_is_protected() {
    protects(&Installation::default_15(), false);
}

#[test]
fn a_running_server_of_16_is_protected() {
    protects(&Installation::need(16, 0), false);
}

#[test]
fn a_running_server_of_17_is_protected() {
    protects(&Installation::need(17, 0), false);
}

#[test]
fn a_running_server_of_18_with_checksums_is_protected() {
    protects(&Installation::need(18, 0), true);
}

fn tier_of_one() -> Tier {
    Tier::without_tenant(&Shape {
        shards: 1,
        ..Shape::default()
    })
}

/// As the superuser, through the socket.
fn socket_url(server: &Server) -> String {
    let home = server.cluster.home().display();
    format!("host={home} port={} user=postgres dbname=postgres", server.port)
}

fn streaming(keeper: &Process) {
    let what = format!("the stream: {}", keeper.status());
    wait_until(&what, || keeper.status()["phase"] == "streaming");
}

/// What a synchronous server acknowledged is on the branch, whatever dies in between, and in the end the server itself.
#[test]
fn nothing_that_a_synchronous_server_acknowledged_is_lost() {
    let mut server = Server::start(&Installation::default_15(), false);
    let mut tier = tier_of_one();
    let arguments = ["--lease-ms=2000", "--synchronous-name=keeper"];
    let mut keeper = client(&tier, &server.url(), &arguments);
    streaming(&keeper);
    server.cluster.sql(
        "create table recorded (client int, n bigint);\n\
         alter system set synchronous_standby_names = 'keeper'; select pg_reload_conf()",
    );
    wait_until("the server to wait for its standby", || {
        server.cluster.sql("select sync_state from pg_stat_replication") == "sync"
    });
    let url = socket_url(&server);
    let mut record = Recorder::start(&url, 1, 0);
    let more = |record: &Recorder| {
        let from = record.acknowledged();
        wait_until("twenty commits", || record.acknowledged() >= from + 20);
    };
    more(&record);

    // The client: commits wait for the next one, which goes on where the quorum is.
    keeper.kill();
    keeper = client(&tier, &server.url(), &arguments);
    more(&record);

    // One safekeeper of three.
    tier.kill_role("safekeeper-1");
    more(&record);

    // Two: no commit is acknowledged, and the client comes back by itself.
    tier.kill_role("safekeeper-2");
    wait_until("the lost quorum to be noticed", || keeper.health().0 == 503);
    let attempted = record.attempted();
    assert!(
        record.acknowledged() < attempted,
        "{attempted} was acknowledged by nobody"
    );
    tier.start_role("safekeeper-1");
    tier.start_role("safekeeper-2");
    more(&record);
    assert!(keeper.status()["restarts"].as_u64() > Some(0));

    // The server crashes and recovers.
    let before = record.acknowledged();
    server.cluster.stop(Stop::Crash);
    let ended = record.join();
    assert!(ended.acknowledged >= before && ended.error.is_some());
    server.up(&[]);
    record = Recorder::start(&url, 2, 0);
    more(&record);

    // The server and its disk are gone.
    let data = server.cluster.data_dir();
    let pid = fs::read_to_string(data.join("postmaster.pid")).expect("postmaster.pid");
    let pid = pid.lines().next().and_then(|line| line.parse().ok());
    let pid = pid
        .and_then(rustix::process::Pid::from_raw)
        .expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a signal");
    let second = record.join();
    // Its processes notice one after the other that they are alone.
    wait_until("a wiped disk", || {
        fs::remove_dir_all(&data).is_ok() || !data.exists()
    });
    drop(server);

    tier.client(&["branch", "create", "rescued"]);
    let rescued = tier.compute("rescued", "rescued");
    for (client, record) in [(1, ended), (2, second)] {
        let query = format!("select count(*), coalesce(max(n), 0) from recorded where client = {client}");
        let found = rescued.sql(&[&query]);
        let (count, last) = found.split_once('|').expect("two columns");
        assert_eq!(
            count, last,
            "client {client}: {found}: none is missing in between, and none is there twice"
        );
        let last: u64 = last.parse().expect("a number");
        assert!(
            (record.acknowledged..=record.attempted).contains(&last),
            "client {client}: {} acknowledged, {} sent, {last} found",
            record.acknowledged,
            record.attempted
        );
    }
    // The standby of the lost server is nobody's here.
    rescued.sql(&["insert into recorded values (3, 1)"]);
    rescued.stop();
    keeper.kill();
}

fn backup_bytes(keeper: &Process) -> u64 {
    keeper.status()["base_backup"]["bytes"].as_u64().expect("bytes")
}

/// Waits until a base backup is in its middle.
fn in_the_middle(keeper: &Process) {
    let what = format!("the middle of a base backup: {}", keeper.status());
    wait_until(&what, || {
        keeper.status()["phase"] == "base_backup" && backup_bytes(keeper) > 8 << 20
    });
}

/// Everybody who takes part in a base backup dies in the middle of it; the next one begins by itself, and nothing is left
/// of those before.
#[test]
fn a_base_backup_that_is_interrupted_begins_again() {
    let mut server = Server::start(&Installation::default_15(), false);
    let loaded = pgbench(&server, &["-i", "-q", "-s", "3"])
        .wait()
        .expect("pgbench");
    assert!(loaded.success());
    let mut tier = Tier::without_tenant(&Shape::default());
    let slowly = ["--shards=2", "--backup-rate-kib=12288"];
    let keeper = client(&tier, &server.url(), &slowly);
    in_the_middle(&keeper);
    keeper.kill();
    let keeper = client(&tier, &server.url(), &slowly);
    for role in ["pageserver-1", "controller"] {
        in_the_middle(&keeper);
        let restarts = keeper.status()["restarts"].as_u64();
        tier.kill_role(role);
        wait_until("the loss to be noticed", || {
            keeper.status()["restarts"].as_u64() > restarts
        });
        let trouble = keeper.status();
        tier.start_role(role);
        println!("without {role}: {}", trouble["trouble"]);
    }
    in_the_middle(&keeper);
    keeper.kill();
    let keeper = client(&tier, &server.url(), &["--shards=2"]);
    streaming(&keeper);
    for name in tier.names("pageserver") {
        let left = fs::read_dir(tier.home().join(&name)).expect("a directory");
        let names = left.map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        });
        let spools: Vec<String> = names.filter(|name| name.starts_with("import-")).collect();
        assert!(spools.is_empty(), "{name}: {spools:?}");
    }
    assert_eq!(
        server.cluster.sql("select count(*) from pg_replication_slots"),
        "1"
    );
    server.cluster.sql("create table t as select 1 as n");
    server.cluster.stop(Stop::Clean);
    let end = shutdown_end(&server, &keeper);
    compare_with_files(&tier, "main", end, &server.cluster.data_dir());
}

/// A branch has one writer; WAL of another one, or of another server, is never mixed in, and a gap is told.
#[test]
fn what_does_not_go_on_from_the_branch_is_refused() {
    let mut server = Server::start(&Installation::default_15(), false);
    let tier = tier_of_one();
    let keeper = client(&tier, &server.url(), &[]);
    streaming(&keeper);
    server.cluster.sql("create table t as select 1 as n");
    committed(&keeper, server.end());
    assert!(keeper.stop().success());

    // The slot is dropped, and the WAL behind it removed.
    wait_until("the slot to be free", || {
        server.cluster.sql("select active from pg_replication_slots") == "f"
    });
    server
        .cluster
        .sql("select pg_drop_replication_slot('lakebed_test_main')");
    for _ in 0..3 {
        server
            .cluster
            .sql("insert into t values (2); select pg_switch_wal(); checkpoint");
    }
    let wal = server.cluster.data_dir().join("pg_wal/000000010000000000000001");
    assert!(!wal.exists());
    ends(&tier, &server.url(), "the server has removed WAL");

    // Another server, at the same place.
    let mut other = Server::start(&Installation::default_15(), false);
    ends(&tier, &other.url(), "it is another cluster");
    other.cluster.stop(Stop::Crash);

    server.cluster.stop(Stop::Crash);
}

fn ends(tier: &Tier, url: &str, why: &str) {
    let mut keeper = client(tier, url, &[]);
    assert!(!keeper.wait().success());
    assert!(keeper.log().contains(why), "{why}: {}", keeper.log());
}

/// A compute on the protected branch fences the client, and the client does not come back over what the compute wrote.
#[test]
fn a_compute_on_the_protected_branch_takes_it_over() {
    let server = Server::start(&Installation::default_15(), false);
    let tier = tier_of_one();
    let mut keeper = client(&tier, &server.url(), &[]);
    streaming(&keeper);
    server.cluster.sql("create table t as select 1 as n");
    committed(&keeper, server.end());
    let compute = tier.compute("main", "main");
    assert_eq!(compute.sql(&["select n from t"]), "1");
    assert!(!keeper.wait().success());
    assert!(keeper.log().contains("fenced"), "{}", keeper.log());
    compute.sql(&["insert into t values (2)"]);
    compute.stop();
    server
        .cluster
        .sql("insert into t select generate_series(10, 5000)");
    ends(&tier, &server.url(), "that this server has not");
    let again = tier.compute("main", "main");
    assert_eq!(again.sql(&["select sum(n) from t"]), "3");
    again.stop();
}

/// Tablespaces of the server become directories of computes, those from before the base backup and later ones; also one
/// inside of the data directory, as developers make them. Base backups of 15 leave those out.
fn keeps_tablespaces(installation: &Installation) {
    let mut server = Server::start(installation, false);
    let home = server.cluster.home().display().to_string();
    // By the server, whose user has to own it.
    let tablespace = |name: &str| {
        format!(
            "copy (select 1) to program 'cat > {home}/{name}.txt; mkdir {home}/{name}'; \
             create tablespace {name} location '{home}/{name}';\n"
        )
    };
    let inside = match installation.major {
        15 => "",
        _ => {
            "set allow_in_place_tablespaces = on; create tablespace inside location ''; set default_tablespace = inside;"
        }
    };
    server.cluster.sql(&format!(
        "{}{}{inside}\n\
         create table near (n int); insert into near select generate_series(1, 1000);\n\
         create table far (n int primary key using index tablespace early) tablespace early;\n\
         insert into far select generate_series(1, 100000); create database other tablespace early",
        tablespace("early"),
        tablespace("dropped"),
    ));
    let shape = Shape {
        shards: 2,
        postgres: installation.clone(),
        ..Shape::default()
    };
    let tier = Tier::without_tenant(&shape);
    let keeper = client(&tier, &server.url(), &["--shards=2"]);
    streaming(&keeper);
    server.cluster.sql(&format!(
        "drop tablespace dropped; {}create table further tablespace late as select generate_series(1, 5000) n;\n\
         update far set n = -n where n % 7 = 0; insert into near select generate_series(1, 5000)",
        tablespace("late"),
    ));
    let sums = "select (select sum(n) from near), (select sum(n) from far), (select sum(n) from further), \
                (select string_agg(spcname, ' ' order by spcname) from pg_tablespace where oid > 16383)";
    let expected = server.cluster.sql(sums);
    let names = if inside.is_empty() {
        "early late"
    } else {
        "early inside late"
    };
    assert!(expected.ends_with(names), "{expected}");
    server.cluster.stop(Stop::Clean);
    let end = shutdown_end(&server, &keeper);
    compare_with_files(&tier, "main", end, &server.cluster.data_dir());
    assert!(keeper.stop().success());
    // The places of the server are not touched by a compute.
    for name in ["early", "late"] {
        fs::remove_dir_all(Path::new(&home).join(name)).expect("a tablespace's directory");
    }
    tier.client(&["branch", "create", "head"]);
    let head = tier.compute("head", "head");
    assert_eq!(head.sql(&[sums]), expected);
    head.sql(&[
        "alter table far set tablespace pg_default",
        "insert into further values (0)",
    ]);
    assert_eq!(head.sql(&[sums]), expected);
    head.stop();
}

#[test]
fn tablespaces_of_a_server_of_15_come_along() {
    keeps_tablespaces(&Installation::default_15());
}

#[test]
fn tablespaces_of_a_server_of_18_come_along() {
    keeps_tablespaces(&Installation::need(18, 0));
}
