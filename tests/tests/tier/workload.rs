//! Load that makes every kind of record and file that ordinary SQL makes.

use lakebed_pgtest::workloads;
use lakebed_tests::Compute;

/// What a compute needs for it.
pub const SETTINGS: [&str; 2] = ["--set=autovacuum=off", "--set=max_prepared_transactions=10"];

/// Heap, B-tree and sequence records, TOAST, truncation, VACUUM (FULL), CLUSTER; see the file.
pub fn ddl(compute: &Compute) {
    compute.script("ddl", workloads::DDL);
}

/// Databases by both strategies, with a tablespace `ts` that exists already; see the file. One transaction stays
/// prepared.
pub fn databases(compute: &Compute) {
    compute.script("databases", workloads::DATABASES);
}

/// Several sessions lock the same rows, more than one page of multixacts and of their members.
pub fn multixacts(compute: &Compute) {
    compute.sql(&[
        "create table locked (a int primary key, b int)",
        "insert into locked select i, 0 from generate_series(1, 1500) i",
    ]);
    let mut sessions: Vec<_> = (0..3).map(|_| compute.connection()).collect();
    for session in &mut sessions {
        // Each row in a subtransaction of its own: rows with the same lockers would share one multixact.
        session
            .batch_execute(
                "begin; do $$ begin for i in 1..1500 loop begin perform from locked where a = i for share; \
                 exception when division_by_zero then null; end; end loop; end $$",
            )
            .expect("shared locks");
    }
    let mut updater = compute.connection();
    for session in &mut sessions {
        session.batch_execute("commit").expect("a commit");
    }
    // Updaters of a key share lock: a multixact with an update in it.
    sessions[0]
        .batch_execute("begin; select * from locked for key share")
        .expect("shared locks");
    updater
        .batch_execute("update locked set b = b + 1 where a % 3 = 0")
        .expect("an update");
    sessions[0].batch_execute("commit").expect("a commit");
    compute.sql(&["delete from locked where a % 7 = 0", "vacuum (freeze) locked"]);
}

/// More subtransactions than fit into a session's cache, some rolled back.
pub fn subtransactions(compute: &Compute) {
    compute.sql(&[
        "create table nested (a int primary key)",
        "do $$ begin for i in 1..300 loop begin insert into nested values (i); \
         if i % 5 = 0 then raise exception 'x'; end if; \
         exception when raise_exception then null; end; end loop; end $$",
    ]);
}
