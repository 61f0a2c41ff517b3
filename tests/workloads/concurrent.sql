-- One pgbench transaction script: hash, BRIN and bloom indexes under concurrent writes, scans and VACUUM.
\set k random(1, 200)
\set kind random(1, 40)
INSERT INTO h SELECT :k, i FROM generate_series(1, 60) i;
DELETE FROM h WHERE k = (:k * 7) % 200;
SELECT count(*) FROM h WHERE k = :k;
UPDATE b SET t = repeat('z', 1 + :k * 4) WHERE id = :k * 17;
INSERT INTO b VALUES (:k, repeat('c', :k), repeat('x', 4000));
INSERT INTO bl SELECT i, :k, i % 7 FROM generate_series(1, 20) i;
DELETE FROM bl WHERE b = :k AND c = 1;
\if :kind = 1
VACUUM h;
\elif :kind = 2
VACUUM b;
\elif :kind = 3
VACUUM bl;
\elif :kind = 4
SELECT brin_desummarize_range('b_t', :k);
\endif
