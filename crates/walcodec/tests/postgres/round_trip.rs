//! WAL of every Postgres that is installed: it comes out as it went in, and what the model is for pays off.

use lakebed_pgtest::{Cluster, InitOptions, Installation, Stop, run};
use lakebed_types::Lsn;
use lakebed_walcodec::stream::Method;

use crate::written::written;

/// Indexes of different kinds of keys, each built in one go: (name, table, columns).
const INDEXES: [(&str, &str, &str); 4] = [
    (
        "float8",
        "create table float8 as select random() k from generate_series(1, 60000)",
        "k",
    ),
    (
        "text",
        "create table text as select md5((i / 10)::text) || 'suffix' k from generate_series(1, 40000) i",
        "k",
    ),
    (
        "composite",
        "create table composite as select i % 97 k, (random() * 1e9)::int l from generate_series(1, 60000) i",
        "k, l",
    ),
    (
        "duplicates",
        "create table duplicates as select i % 50 k from generate_series(1, 200000) i",
        "k",
    ),
];

fn position(cluster: &Cluster) -> Lsn {
    let printed = cluster.sql("select pg_current_wal_lsn() - '0/0'::pg_lsn");
    Lsn(printed.parse().unwrap())
}

#[test]
fn wal_of_every_release_comes_out_as_it_went_in() {
    Installation::each(|installation| {
        let mut cluster = Cluster::init_with(installation, &InitOptions::default());
        cluster.start(&[
            "wal_keep_size=2GB",
            "fsync=off",
            "full_page_writes=off",
            "autovacuum=off",
        ]);
        run(cluster.client("pgbench").args(["-i", "-s", "1", "-q"]));
        let loaded = position(&cluster);
        run(cluster.client("pgbench").args(["-c", "2", "-t", "1500", "-n"]));
        let ran = position(&cluster);
        let mut built = Vec::new();
        for (name, table, columns) in INDEXES {
            cluster.sql(table);
            let from = position(&cluster);
            cluster.sql(&format!("create index on {name} ({columns})"));
            built.push((name, from, position(&cluster)));
        }
        cluster.sql("alter system set full_page_writes = on; select pg_reload_conf(); checkpoint");
        run(cluster.client("pgbench").args(["-c", "2", "-t", "200", "-n"]));
        cluster.sql("select pg_switch_wal(); vacuum");
        cluster.stop(Stop::Crash);

        let wal = written(&cluster, installation);
        let end = wal.ends.last().unwrap().0;
        for method in [Method::Zstd, Method::Records] {
            wal.send(wal.start, end, method);
        }
        let (raw, coded, commits) = wal.send(loaded, ran, Method::Records);
        let (_, by_zstd, _) = wal.send(loaded, ran, Method::Zstd);
        println!("{installation} pgbench: {raw} {by_zstd} {coded}, {commits} commits");
        assert!(commits >= 3000);
        assert!(coded / commits < 100, "{coded} bytes for {commits} transactions");
        assert!(3 * coded < by_zstd, "{coded} by the model, {by_zstd} by zstd");
        for (name, from, to) in built {
            let (raw, coded, _) = wal.send(from, to, Method::Records);
            let (_, by_zstd, _) = wal.send(from, to, Method::Zstd);
            println!("{installation} {name}: {raw} {by_zstd} {coded}");
            assert!(
                10 * coded < 9 * by_zstd,
                "{name}: {coded} in columns, {by_zstd} by zstd, of {raw}"
            );
        }
    });
}
