//! Everything a user keeps in a Postgres is there after its compute is lost, also what no WAL carries.

use lakebed_pgtest::{Installation, temp_dir};
use lakebed_tests::{Compute, Shape, Tier};

const SETTINGS: &[&str] = &["--set=max_prepared_transactions=10", "--set=wal_level=logical"];

/// Each makes something, and asks for it: the answers must be the same on the next compute.
const THINGS: &[(&str, &[&str], &str)] = &[
    (
        "a table with TOAST",
        &[
            "create table wide as select n, repeat(md5(n::text), 200) || random() as t from generate_series(1, 300) n",
        ],
        "select count(*), sum(length(t)), md5(string_agg(t, ',' order by n)) from wide",
    ),
    (
        "a sequence",
        &[
            "create sequence seq",
            "select nextval('seq') from generate_series(1, 100)",
        ],
        "select last_value >= 100 from seq",
    ),
    (
        "large objects",
        &["select lo_from_bytea(4711, convert_to(repeat('large ', 10000), 'UTF8'))"],
        "select md5(lo_get(4711))",
    ),
    (
        "an unlogged table, empty after a crash as in stock Postgres",
        &[
            "create unlogged table u (n int primary key)",
            "insert into u select generate_series(1, 1000)",
        ],
        "select 'u', count(*) >= 0 from u",
    ),
    (
        "an unlogged table made logged",
        &[
            "create unlogged table ul as select generate_series(1, 1000) n",
            "alter table ul set logged",
        ],
        "select count(*) from ul",
    ),
    (
        "a database from a template, page by page",
        &["create database logged_copy template template0 strategy wal_log"],
        "select datname from pg_database where datname = 'logged_copy'",
    ),
    (
        "a database from a template, file by file",
        &["create database file_copy strategy file_copy"],
        "select datname from pg_database where datname = 'file_copy'",
    ),
    (
        "truncated, rewritten and shrunk tables",
        &[
            "create table gone as select generate_series(1, 20000) n",
            "truncate gone",
            "insert into gone select generate_series(1, 10)",
            "create table full_ as select n, md5(n::text) t from generate_series(1, 20000) n",
            "delete from full_ where n % 3 = 0",
            "vacuum full full_",
            "create table shrunk as select n from generate_series(1, 50000) n",
            "delete from shrunk where n > 100",
            "vacuum shrunk",
            "insert into shrunk select generate_series(101, 5000)",
        ],
        "select (select count(*) from gone), (select count(*) from full_), (select count(*) from shrunk), \
         pg_relation_size('shrunk')",
    ),
    (
        "a configuration that ALTER SYSTEM wrote",
        &["alter system set work_mem = '7MB'"],
        "select setting from pg_settings where name = 'work_mem' and false \
         union select regexp_replace(pg_read_file('postgresql.auto.conf'), '.*work_mem', 'work_mem')",
    ),
    (
        "replication slots",
        &[
            "select pg_create_physical_replication_slot('physical', true)",
            "select pg_create_logical_replication_slot('logical', 'test_decoding')",
        ],
        "select slot_name, slot_type from pg_replication_slots order by 1",
    ),
    (
        "multixacts and subtransactions",
        &[
            "create table m as select n from generate_series(1, 200) n",
            "do $$ begin for i in 1..200 loop begin update m set n = n where n = i; exception when others then null; \
             end; end loop; end $$",
        ],
        "select count(*), sum(n) from m",
    ),
    (
        "a tablespace",
        &[
            "create tablespace inside location '@DIRECTORY@'",
            "create table placed tablespace inside as select generate_series(1, 5000) n",
        ],
        "select count(*), sum(n) from placed",
    ),
    (
        "an index of every kind",
        &[
            "create extension bloom",
            "create table ix as select n, array[n % 50, n % 7] a, point(n % 100, n / 100) p, md5(n::text) t \
             from generate_series(1, 20000) n",
            "create index on ix using gin (a)",
            "create index on ix using gist (p)",
            "create index on ix using spgist (t)",
            "create index on ix using hash (t)",
            "create index on ix using brin (n)",
            "create index on ix using bloom (n)",
            "delete from ix where n % 3 = 0",
            "vacuum ix",
            "insert into ix select n, array[n % 50, n % 7], point(n % 100, n / 100), md5(n::text) \
             from generate_series(20001, 30000) n",
        ],
        "set enable_seqscan = off; select (select count(*) from ix where a @> array[3]), \
         (select count(*) from ix where p <@ box '((10, 10), (30, 300))'), \
         (select count(*) from ix where t ^@ 'ab'), (select count(*) from ix where t = md5('20777')), \
         (select count(*) from ix where n between 500 and 25000), (select count(*) from ix where n = 20777)",
    ),
    (
        "a prepared transaction",
        &[
            "create table two (n int)",
            "begin; insert into two values (1); prepare transaction 'later'",
        ],
        "select gid from pg_prepared_xacts",
    ),
];

fn answers(compute: &Compute) -> Vec<(&'static str, String)> {
    THINGS
        .iter()
        .map(|(what, _, question)| (*what, compute.sql(&[question])))
        .collect()
}

#[test]
fn a_lost_compute_takes_nothing_along() {
    let tier = Tier::start(&Shape::default());
    let compute = tier.compute_with("main", "first", SETTINGS);
    let place = temp_dir();
    for (what, statements, _) in THINGS {
        println!("{what}");
        for statement in *statements {
            compute.sql(&[&statement.replace("@DIRECTORY@", &place.path().display().to_string())]);
        }
    }
    let before = answers(&compute);
    compute.kill();

    let compute = tier.compute_with("main", "second", SETTINGS);
    assert_eq!(answers(&compute), before);
    assert_eq!(compute.sql(&["show work_mem"]), "7MB");
    assert_eq!(
        compute.sql(&["commit prepared 'later'", "select n from two"]),
        "1"
    );
    assert_eq!(
        compute.sql(&["select count(*) from u"]),
        "0",
        "an unlogged table is empty after a crash"
    );
    compute.sql(&[
        "insert into u values (1)",
        "drop database file_copy",
        "drop table wide",
    ]);
    compute.sql(&["select pg_drop_replication_slot('physical')"]);
    compute.sql(&["alter system reset work_mem"]);
    // Edited by hand, as no statement can.
    let edited = compute.data_dir().join("pg_hba.conf");
    let text = std::fs::read_to_string(&edited).expect("pg_hba.conf");
    std::fs::write(&edited, format!("{text}# mine\n")).expect("pg_hba.conf");
    compute.stop();

    let compute = tier.compute_with("main", "third", SETTINGS);
    let rows = compute.sql(&[
        "select count(*) from pg_database where datname = 'file_copy'",
        "select count(*) from pg_class where relname = 'wide'",
        "select slot_name from pg_replication_slots",
        "select n from two",
        "show work_mem",
        "select pg_read_file('pg_hba.conf') like E'%# mine\\n'",
    ]);
    assert_eq!(rows, "0\n0\nlogical\n1\n4MB\nt");
    compute.run("pg_amcheck", &["--install-missing", "--heapallindexed", "--all"]);
    compute.stop();
}

/// A logical slot reads on where it was, through WAL that no compute has any more.
#[test]
fn a_logical_slot_reads_wal_of_earlier_computes() {
    let tier = Tier::start(&Shape::default());
    let compute = tier.compute_with("main", "first", SETTINGS);
    compute.sql(&[
        "create table t (n int)",
        "select pg_create_logical_replication_slot('s', 'test_decoding')",
    ]);
    compute.sql(&[
        "insert into t select generate_series(1, 100)",
        "select pg_switch_wal()",
    ]);
    compute.sql(&[
        "insert into t select generate_series(101, 200)",
        "checkpoint",
        "select pg_switch_wal()",
    ]);
    compute.kill();
    let compute = tier.compute_with("main", "second", SETTINGS);
    compute.sql(&["insert into t values (201)", "checkpoint"]);
    let changes =
        "select count(*) from pg_logical_slot_get_changes('s', null, null) where data like '%INSERT%'";
    assert_eq!(compute.sql(&[changes]), "201");
    compute.sql(&["insert into t values (202)"]);
    assert_eq!(compute.sql(&[changes]), "1");
    compute.stop();
}

/// What a cluster remembers of old transactions is there, and a start does not wait for it: pages of old segments come when
/// they are read. Segments that Postgres gives up are gone.
#[test]
fn old_segments_of_slrus_come_when_they_are_read() {
    const TIMES: &[&str] = &["--set=track_commit_timestamp=on"];
    let tier = Tier::start(&Shape::default());
    let compute = tier.compute_with("main", "first", TIMES);
    compute.sql(&["create table used (n int)"]);
    // A segment has the times of 26,208 transactions, and a subtransaction that writes is one.
    for _ in 0..4 {
        compute.sql(&["do $$ begin for i in 1..30000 loop \
             begin insert into used values (i); exception when others then raise; end; \
             end loop; end $$"]);
    }
    compute.sql(&[
        "create table sample as select x::text::xid as xid, pg_xact_commit_timestamp(x::text::xid) as at \
         from generate_series(1000, (select max(xmin::text::int) from used), 501) x",
    ]);
    let times = compute.sql(&["select count(distinct at), count(*) > 200, count(*) = count(at) from sample"]);
    assert_eq!(times, "4|t|t");
    compute.kill();

    let segments = |compute: &Compute| -> Vec<String> {
        let listed = std::fs::read_dir(compute.data_dir().join("pg_commit_ts")).expect("a directory");
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<_> = listed
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let compute = tier.compute_with("main", "second", TIMES);
    assert_eq!(segments(&compute), ["0004"], "after the start");
    let same = "select count(*), count(*) filter (where pg_xact_commit_timestamp(xid) = at) from sample";
    let all = compute.sql(&["select count(*) from sample"]);
    assert_eq!(
        compute.sql(&[same]),
        format!("{all}|{all}"),
        "times that were read page by page"
    );
    assert_eq!(segments(&compute), ["0000", "0001", "0002", "0003", "0004"]);
    compute.kill();

    // Here nobody reads them before Postgres looks for what it can remove.
    let compute = tier.compute_with("main", "third", TIMES);
    compute.sql(&["alter database template0 allow_connections true"]);
    compute.run("vacuumdb", &["--all", "--freeze"]);
    assert_eq!(segments(&compute), ["0004"], "what Postgres keeps");
    // Takes the truncation's record along to the quorum.
    compute.sql(&["insert into used values (0)"]);
    compute.kill();
    let compute = tier.compute_with("main", "fourth", TIMES);
    assert_eq!(segments(&compute), ["0004"]);
    let gone = "select pg_xact_commit_timestamp('900') is null";
    assert_eq!(compute.sql(&[gone]), "t");
    compute.sql(&["insert into used values (0)"]);
    compute.stop();
}

/// With `wal_level = minimal` Postgres would write relations without WAL: refused, and no file can ask for it.
#[test]
fn settings_that_would_lose_data_are_refused() {
    let tier = Tier::start(&Shape::default());
    let connect = tier.connect("main");
    for (setting, says) in [
        ("wal_level=minimal", "would lose data"),
        ("fsync=off", "cannot be changed"),
        ("wal_sync_method=open_datasync", "cannot be changed"),
    ] {
        let directory = tier.home().join("refused");
        let error = Compute::try_start(
            &Installation::default_15(),
            &connect,
            &directory,
            &[&format!("--set={setting}")],
        )
        .expect_err("a refusal");
        assert!(error.contains(says), "{setting}: {error}");
    }
    let compute = tier.compute("main", "first");
    compute.sql(&["alter system set wal_level = minimal"]);
    compute.sql(&["alter system set fsync = off"]);
    compute.sql(&["alter system set max_wal_senders = 0"]);
    compute.stop();
    let compute = tier.compute("main", "second");
    assert_eq!(
        compute.sql(&["show wal_level", "show fsync", "show full_page_writes"]),
        "replica\non\noff"
    );
    compute.stop();
}
