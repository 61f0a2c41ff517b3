//! SQL that makes Postgres write every kind of record that has effects outside of pages.

use std::path::Path;

use lakebed_pgtest::{Cluster, run};

/// Settings of every start. Without full page images every visibility-map change is its own record.
pub const SETTINGS: [&str; 8] = [
    "fsync=off",
    "autovacuum=off",
    "full_page_writes=off",
    "wal_level=logical",
    "max_prepared_transactions=10",
    "track_commit_timestamp=on",
    "wal_keep_size=4GB",
    "max_wal_size=4GB",
];

/// Transactions in trees, multixacts, row locks, rewrites, truncations, databases, tablespaces; leaves prepared
/// transactions behind.
pub fn first(cluster: &Cluster, tablespace: &Path) {
    // One transaction of 34,000 subtransactions: two pages of pg_xact, 42 of pg_commit_ts, which is over a segment.
    cluster.sql(
        "create table tree (n int);
         do $$ begin for i in 1..34000 loop
             begin insert into tree values (i); exception when division_by_zero then null; end;
         end loop; end $$;
         begin; insert into tree values (-1); savepoint a; insert into tree values (-2); rollback to a;
         savepoint b; insert into tree values (-3); release b; commit;
         begin; insert into tree values (-4); savepoint a; insert into tree values (-5); rollback",
    );
    // 67,000 multixacts of two members: 33 pages of offsets, which is over a segment, and 82 of members.
    cluster.sql(
        "create table locked (id int primary key, v int) with (fillfactor = 50);
         insert into locked select g, 0 from generate_series(1, 67000) g;
         do $$ begin for i in 1..67000 loop
             perform 1 from locked where id = i for key share;
             begin update locked set v = 1 where id = i; exception when division_by_zero then null; end;
         end loop; end $$;",
    );
    // Two sessions that share rows: the first one's locks are those of a prepared transaction.
    cluster.sql(
        "begin; select count(*) from (select 1 from locked where id <= 3000 for share) s;
         savepoint s; select count(*) from (select 1 from locked where id = 1 for no key update) s;
         prepare transaction 'sharer'",
    );
    cluster.sql(
        "begin; select count(*) from (select 1 from locked where id between 2 and 3000 for share) s; commit",
    );
    cluster.sql("commit prepared 'sharer'");
    // Old pages of pg_multixact and pg_commit_ts go when every database has let go of them.
    cluster.sql("alter database template0 allow_connections on");
    run(cluster.client("vacuumdb").args(["--all", "--freeze", "-q"]));
    cluster.sql("checkpoint");
    run(cluster.client("vacuumdb").args(["--all", "--freeze", "-q"]));

    let oid = "(select oid from pg_class where relname = 'locked')";
    cluster.sql(&format!(
        "begin; create table gone (n int primary key); insert into gone select generate_series(1, 100); rollback;
         create table dropped (n int, t text); insert into dropped values (1, repeat('x', 10000)); drop table dropped;
         create table emptied as select generate_series(1, 5000) n; truncate emptied; insert into emptied values (1);
         create table shrunk as select g n from generate_series(1, 100000) g; vacuum shrunk;
         delete from shrunk where n > 3000; vacuum shrunk;
         insert into shrunk select generate_series(1, 20000); vacuum (freeze) shrunk;
         update shrunk set n = n + 1 where n % 1000 = 7; delete from shrunk where n % 777 = 3;
         select count(*) from (select 1 from shrunk where n % 991 = 5 for update) s;
         create sequence seq; select count(nextval('seq')) from generate_series(1, 100);
         create unlogged table unlogged as select 1 n; create index on shrunk (n); vacuum full shrunk; vacuum shrunk;
         update shrunk set n = -n where n % 500 = 1;
         select lo_create(0); vacuum full pg_class; vacuum full pg_database; cluster locked using locked_pkey;
         select pg_create_restore_point('here'), {oid};
         select pg_logical_emit_message(true, 'a', 'b'); select pg_switch_wal()"
    ));
    // Bits set, and cleared by each kind of record that clears them; the maps are compared at the end.
    cluster.sql(
        "vacuum (freeze) locked; create table many as select g n, 0 v from generate_series(1, 50000) g;
         vacuum (freeze) many; update many set v = 1 where n between 1 and 10 or n between 30000 and 31000;
         delete from many where n = 20000; select 1 from many where n = 40000 for update;
         update locked set v = 3 where id % 5000 = 1; select 1 from locked where id = 60000 for share;
         create table hole as select generate_series(1, 5000) n; delete from hole where n between 2000 and 2500;
         vacuum hole; insert into hole values (0); vacuum hole; copy hole from program 'seq 1 20';
         create table tail as select generate_series(1, 50000) n; vacuum tail;
         delete from tail where n > 12345; vacuum tail; insert into tail select generate_series(1, 20000)",
    );
    cluster.sql(&format!(
        "create tablespace elsewhere location '{}'",
        tablespace.display()
    ));
    cluster.sql(
        "create table far (n int) tablespace elsewhere; insert into far values (1); alter table emptied set tablespace elsewhere",
    );
    cluster.sql("create database by_log strategy wal_log");
    cluster.sql("create database by_copy strategy file_copy");
    cluster.sql("create database moved template by_log strategy wal_log");
    cluster.sql("alter database moved set tablespace elsewhere");
    cluster.sql("create database short strategy file_copy");
    cluster.sql("drop database short");
    // 20,000 tables' worth of oids are not needed: one prefetch of 8192 is used up by large objects.
    cluster.sql("select count(lo_create(0)) from generate_series(1, 9000)");
    cluster.sql(
        "select pg_replication_origin_create('upstream');
         select pg_replication_origin_advance('upstream', '0/ABCD');
         select pg_replication_origin_session_setup('upstream');
         begin; select pg_replication_origin_xact_setup('0/BCDE', '2020-01-02 03:04:05+00');
         insert into far values (2); commit",
    );
    for (name, end) in [
        ("kept", ""),
        ("kept 2", ""),
        ("done", "commit prepared 'done'"),
        ("undone", "rollback prepared 'undone'"),
    ] {
        cluster.sql(&format!(
            "begin; create table \"prepared {name}\" (n int); insert into \"prepared {name}\" values (1); savepoint a;
             insert into far values (3); savepoint b; drop table if exists seen; insert into far values (4);
             prepare transaction '{name}'; {end}"
        ));
    }
    cluster.sql("create table seen as select 1; checkpoint");
}

/// A little more, with the last transaction open when the server dies.
pub fn second(cluster: &Cluster) {
    cluster.sql("commit prepared 'kept'; rollback prepared 'kept 2'");
    cluster.sql(
        "do $$ begin for i in 1..1000 loop
             perform 1 from locked where id = i for key share;
             begin update locked set v = 2 where id = i; exception when division_by_zero then null; end;
         end loop; end $$;
         create table late as select generate_series(1, 1000) n; vacuum late; delete from late where n < 10;
         begin; insert into late values (1); savepoint a; insert into late values (2); prepare transaction 'late';
         drop database by_copy; drop table far; vacuum full pg_class; vacuum shrunk;
         select count(lo_create(0)) from generate_series(1, 9000)",
    );
    // Aborted by the crash, after its record has reached the disk.
    cluster.sql("begin; insert into late values (-1); select pg_switch_wal()");
}
