-- Makes every heap, index, sequence and generic record that ordinary SQL can make.
CREATE TABLE t (id int PRIMARY KEY, k int, v text, filler text) WITH (fillfactor = 80);
CREATE INDEX t_k ON t (k);
CREATE INDEX t_v ON t (v);
INSERT INTO t SELECT i, i % 10, 'v' || i % 100, repeat('x', 100) FROM generate_series(1, 5000) i;
COPY t TO '/dev/null';
CREATE TABLE copied (LIKE t);
COPY (SELECT 1) TO '/dev/null';
INSERT INTO copied SELECT * FROM t;
UPDATE t SET filler = repeat('y', 90) WHERE id % 3 = 0;
UPDATE t SET filler = filler || 'z' WHERE id % 3 = 0;
UPDATE t SET v = 'w' || id WHERE id % 7 = 0;
DELETE FROM t WHERE id % 5 = 0;
VACUUM t;
BEGIN;
SAVEPOINT a;
INSERT INTO t VALUES (100001, 1, 'sub', 'x');
ROLLBACK TO a;
SAVEPOINT b;
INSERT INTO t VALUES (100002, 1, 'sub', 'x');
COMMIT;
SELECT count(*) FROM (SELECT * FROM t WHERE id < 50 FOR UPDATE) x;
BEGIN;
SELECT count(*) FROM (SELECT * FROM t WHERE id BETWEEN 50 AND 80 FOR SHARE) x;
SAVEPOINT s;
UPDATE t SET k = 99 WHERE id BETWEEN 60 AND 70;
COMMIT;
INSERT INTO t VALUES (1, 1, 'conflict', 'x') ON CONFLICT (id) DO UPDATE SET k = 5;
INSERT INTO t VALUES (200001, 1, 'speculative', 'x') ON CONFLICT (id) DO NOTHING;
CREATE SEQUENCE s;
SELECT count(nextval('s')) FROM generate_series(1, 100);
SELECT setval('s', 1000);
CREATE TABLE big (id int PRIMARY KEY, data text);
ALTER TABLE big ALTER data SET STORAGE EXTERNAL;
INSERT INTO big SELECT i, repeat(md5(i::text), 300) FROM generate_series(1, 50) i;
UPDATE big SET data = data || 'more' WHERE id % 2 = 0;
DELETE FROM big WHERE id % 3 = 0;
VACUUM (FREEZE, ANALYZE) big;
-- duplicates: deduplication, posting list splits, bottom-up deletion
CREATE TABLE d (a int, b int);
CREATE INDEX d_a ON d (a);
INSERT INTO d SELECT i % 5, i FROM generate_series(1, 20000) i;
DELETE FROM d WHERE b % 2 = 0;
VACUUM d;
INSERT INTO d SELECT i % 5, i FROM generate_series(1, 20000) i;
UPDATE d SET a = a WHERE b < 3000;
UPDATE d SET a = a + 1 WHERE b < 3000;
UPDATE d SET a = a - 1 WHERE b < 3000;
-- three index levels, half-dead and deleted pages
CREATE TABLE wide (a text);
CREATE INDEX wide_a ON wide (a);
INSERT INTO wide SELECT lpad(i::text, 500, md5(i::text)) FROM generate_series(1, 6000) i;
DELETE FROM wide WHERE a < '9';
VACUUM wide;
DELETE FROM wide;
VACUUM wide;
INSERT INTO wide SELECT lpad(i::text, 500, md5(i::text)) FROM generate_series(1, 3000) i;
-- simple deletion of dead index entries on insert
CREATE UNLOGGED TABLE u (a int PRIMARY KEY);
INSERT INTO u SELECT generate_series(1, 1000);
CREATE TABLE del (a int PRIMARY KEY, b int);
INSERT INTO del SELECT i, i FROM generate_series(1, 2000) i;
DELETE FROM del WHERE a BETWEEN 10 AND 600;
SET enable_seqscan = off;
SELECT count(*) FROM del WHERE a BETWEEN 1 AND 700;
SELECT count(*) FROM del WHERE a BETWEEN 1 AND 700;
INSERT INTO del SELECT i, i FROM generate_series(10, 600) i;
RESET enable_seqscan;
BEGIN;
INSERT INTO t VALUES (300001, 1, 'prepared', 'x');
SELECT 1 FROM t WHERE id = 61 FOR UPDATE;
PREPARE TRANSACTION 'p';
COMMIT PREPARED 'p';
TRUNCATE copied;
ANALYZE;
-- hash: splits with phased allocation of buckets, overflow pages and their reuse, squeezing, dead items
-- (a snapshot of an autovacuum worker would keep dead rows from going)
ALTER SYSTEM SET autovacuum = off;
SELECT pg_reload_conf();
DO $$
BEGIN
  PERFORM pg_sleep(0.5);
  WHILE EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'autovacuum worker') LOOP
    PERFORM pg_sleep(0.05);
    PERFORM pg_stat_clear_snapshot();
  END LOOP;
END $$;
CREATE TABLE h (k int, n int) WITH (autovacuum_enabled = off);
CREATE INDEX h_k ON h USING hash (k) WITH (fillfactor = 10);
INSERT INTO h SELECT i, i FROM generate_series(1, 24000) i;
INSERT INTO h SELECT 7, i FROM generate_series(1, 6000) i;
DELETE FROM h WHERE k = 7 AND n % 3 = 0;
VACUUM h;
INSERT INTO h SELECT 7, i FROM generate_series(1, 3000) i;
DELETE FROM h WHERE k = 7 AND n > 500;
VACUUM h;
INSERT INTO h SELECT i % 3, i FROM generate_series(1, 6000) i;
DELETE FROM h WHERE k < 3 AND n % 7 <> 0;
DELETE FROM h WHERE k BETWEEN 100 AND 20000;
VACUUM h;
CREATE TABLE hk (k int, n int) WITH (autovacuum_enabled = off);
CREATE INDEX hk_k ON hk USING hash (k);
INSERT INTO hk SELECT 1, i FROM generate_series(1, 2000) i;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
DELETE FROM hk;
SELECT count(*) FROM hk WHERE k = 1;
SELECT count(*) FROM hk WHERE k = 1;
INSERT INTO hk SELECT 1, i FROM generate_series(1, 2000) i;
DELETE FROM hk;
SELECT count(*) FROM hk WHERE k = 1;
SELECT count(*) FROM hk WHERE k = 1;
INSERT INTO hk SELECT 1, i FROM generate_series(1, 2000) i;
RESET enable_seqscan;
RESET enable_bitmapscan;
-- as many initial buckets as for an estimate of 300000 rows
CREATE TABLE hm (k int) WITH (autovacuum_enabled = off);
INSERT INTO hm VALUES (1);
UPDATE pg_class SET reltuples = 300000, relpages = 1 WHERE relname = 'hm';
CREATE INDEX hm_k ON hm USING hash (k);
CREATE UNLOGGED TABLE hu (k int);
CREATE INDEX hu_k ON hu USING hash (k);
-- BRIN: several map pages, summaries that grow and move, pages emptied for the map
CREATE TABLE b (id int, t text, filler text) WITH (autovacuum_enabled = off);
ALTER TABLE b ALTER filler SET STORAGE PLAIN, ALTER t SET STORAGE PLAIN;
CREATE INDEX b_t ON b USING brin (t) WITH (pages_per_range = 1);
CREATE INDEX b_id ON b USING brin (id) WITH (pages_per_range = 2);
CREATE INDEX b_bloom ON b USING brin (id int4_bloom_ops) WITH (pages_per_range = 64);
INSERT INTO b SELECT i, 'v', repeat('x', 4000) FROM generate_series(1, 400) i;
SELECT brin_summarize_new_values('b_t'), brin_summarize_new_values('b_id'), brin_summarize_new_values('b_bloom');
UPDATE b SET t = repeat('w', 800) WHERE id % 3 = 0;
SELECT brin_desummarize_range('b_t', i), brin_desummarize_range('b_id', i) FROM generate_series(0, 100, 2) i;
SELECT brin_summarize_range('b_t', i), brin_summarize_range('b_id', i) FROM generate_series(0, 100, 2) i;
INSERT INTO b SELECT i, 'v', repeat('x', 4000) FROM generate_series(401, 4000) i;
SELECT brin_summarize_new_values('b_t'), brin_summarize_new_values('b_id'), brin_summarize_new_values('b_bloom');
UPDATE b SET t = repeat('y', 700) WHERE id % 5 = 0;
VACUUM b;
CREATE UNLOGGED TABLE bu (k int);
CREATE INDEX bu_k ON bu USING brin (k);
-- generic records
CREATE EXTENSION bloom;
CREATE TABLE bl (a int, b int, c int) WITH (autovacuum_enabled = off);
INSERT INTO bl SELECT i, i % 100, i % 7 FROM generate_series(1, 2000) i;
CREATE INDEX bl_abc ON bl USING bloom (a, b, c);
INSERT INTO bl SELECT i, i % 100, i % 7 FROM generate_series(2001, 6000) i;
DELETE FROM bl WHERE a % 3 = 0 OR a BETWEEN 1000 AND 3000;
VACUUM bl;
INSERT INTO bl SELECT i, i % 100, i % 7 FROM generate_series(1, 2000) i;
ALTER SYSTEM RESET autovacuum;
SELECT pg_reload_conf();
-- records that name no page
SELECT length(pg_logical_emit_message(true, 'test', 'in a transaction')::text) > 0;
SELECT length(pg_logical_emit_message(false, 'test', 'at once')::text) > 0;
SELECT pg_replication_origin_create('origin');
SELECT pg_replication_origin_advance('origin', '0/100');
SELECT pg_replication_origin_drop('origin');
CREATE TABLE p (a int, b int) PARTITION BY LIST (a);
CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);
INSERT INTO p SELECT 1, i FROM generate_series(1, 100) i;
UPDATE p SET a = 2 WHERE b < 50;
-- GIN, entries put in place at once: posting trees are created, grow in all places, lose entries and pages
CREATE TABLE g (id int, keys int[]) WITH (autovacuum_enabled = off);
INSERT INTO g SELECT i, ARRAY[1, 2 + i % 3, 1000 + i % 4000] FROM generate_series(1, 60000) i;
CREATE INDEX g_keys ON g USING gin (keys) WITH (fastupdate = off);
DELETE FROM g WHERE id BETWEEN 10000 AND 40000 OR id % 11 = 0;
VACUUM (INDEX_CLEANUP ON) g;
INSERT INTO g SELECT i, ARRAY[1, 5 + i % 3, 1000 + i % 4000] FROM generate_series(60001, 75000) i;
DELETE FROM g WHERE id % 5 = 0;
VACUUM (INDEX_CLEANUP ON) g;
INSERT INTO g SELECT i, CASE i % 4 WHEN 0 THEN ARRAY[1, NULL] WHEN 1 THEN '{}' WHEN 2 THEN ARRAY[7, 2] END FROM generate_series(1, 4000) i;
-- GIN, differences between TIDs around the lengths of one and two bytes; 226 rows a page
CREATE TABLE g_gap (a int) WITH (autovacuum_enabled = off);
CREATE INDEX g_gap_one ON g_gap USING gin ((ARRAY[a - a])) WITH (fastupdate = off) WHERE a / 226 < 15 OR CASE a / 226 % 32 WHEN 0 THEN a % 226 IN (0, 127) WHEN 8 THEN a % 226 = 126 WHEN 16 THEN a % 226 = 126 WHEN 20 THEN a % 226 IN (0, 128) END;
INSERT INTO g_gap SELECT generate_series(0, 99 * 226);
-- GIN, three levels of the entry tree; two key columns
CREATE TABLE g_wide (a int, keys text[]);
CREATE INDEX g_wide_keys ON g_wide USING gin (keys) WITH (fastupdate = off);
INSERT INTO g_wide SELECT i, ARRAY[lpad(i::text, 480, md5(i::text)), 'all'] FROM generate_series(1, 2500) i;
CREATE INDEX g_wide_two ON g_wide USING gin (keys, to_tsvector('simple', a || ' word ' || a % 10));
DELETE FROM g_wide WHERE a % 2 = 0;
VACUUM (INDEX_CLEANUP ON) g_wide;
INSERT INTO g_wide SELECT i, ARRAY[lpad(i::text, 480, md5(i::text)), 'all'] FROM generate_series(1, 500) i;
-- GIN, pending list: rows of one and of many pages, moved by size, by function and by VACUUM
CREATE TABLE g_list (keys int[]) WITH (autovacuum_enabled = off);
CREATE INDEX g_list_small ON g_list USING gin (keys) WITH (gin_pending_list_limit = 64);
CREATE INDEX g_list_large ON g_list USING gin (keys);
INSERT INTO g_list SELECT ARRAY[i % 2, i] FROM generate_series(1, 6000) i;
INSERT INTO g_list SELECT array_agg(i) FROM generate_series(1, 5000) i;
INSERT INTO g_list SELECT ARRAY[i % 10, i] FROM generate_series(1, 100) i;
SELECT gin_clean_pending_list('g_list_large');
INSERT INTO g_list SELECT ARRAY[i % 2, i] FROM generate_series(1, 3000) i;
DELETE FROM g_list WHERE keys[2] % 3 = 0;
VACUUM (INDEX_CLEANUP ON) g_list;
CREATE UNLOGGED TABLE g_unlogged (keys int[]);
CREATE INDEX ON g_unlogged USING gin (keys);
INSERT INTO g_unlogged VALUES (ARRAY[1, 2]);
VACUUM FULL t;
CLUSTER t USING t_pkey;
REINDEX TABLE d;
DROP TABLE wide;
VACUUM (FREEZE);
CHECKPOINT;
-- GiST: inserts with splits of leaves, inner pages and the root, for keys of fixed and of changing size
CREATE TABLE gist (id int, p point, b box, r int4range, v tsvector) WITH (autovacuum_enabled = off);
CREATE INDEX gist_p ON gist USING gist (p);
CREATE INDEX gist_b ON gist USING gist (b);
CREATE INDEX gist_r ON gist USING gist (r);
CREATE INDEX gist_v ON gist USING gist (v tsvector_ops (siglen = 2000));
CREATE INDEX gist_many ON gist USING gist (r, b) INCLUDE (id);
SELECT setseed(0.5);
INSERT INTO gist SELECT i, point(x, y), box(point(x, y), point(x + 3, y + 2)), int4range(x::int, x::int + i % 50),
    to_tsvector('simple', md5(i::text) || ' ' || md5((i % 100)::text) || ' w' || i % 7)
    FROM (SELECT i, random() * 1000 x, random() * 1000 y FROM generate_series(1, 8000) i) n;
UPDATE gist SET p = point(p[1], p[0]) WHERE id % 4 = 0;
INSERT INTO gist (id) SELECT generate_series(1, 600);
CREATE INDEX gist_sorted ON gist USING gist (p);
CREATE INDEX gist_buffered ON gist USING gist (p) WITH (buffering = on, fillfactor = 50);
INSERT INTO gist SELECT id + 20000, p, b, r, v FROM gist WHERE id % 3 = 0;
SELECT count(*) FROM (SELECT id FROM gist ORDER BY p <-> point(500, 500) LIMIT 100) near;
-- GiST: tuples leave, pages become empty and go, later they are used again
DELETE FROM gist WHERE p[0] < 700 OR id % 5 = 0;
VACUUM gist;
DELETE FROM gist WHERE p <@ box(point(0, 0), point(2000, 2000));
VACUUM gist;
SELECT count(pg_current_xact_id());
SELECT count(pg_current_xact_id());
VACUUM gist;
VACUUM gist;
INSERT INTO gist SELECT i, point(x, y), box(point(x, y), point(x + 3, y + 2)), int4range(x::int, x::int + i % 50),
    to_tsvector('simple', md5(i::text)) FROM (SELECT i, random() * 9 x, random() * 9 y FROM generate_series(1, 6000) i) n;
CREATE TABLE booking (room int4range, during tsrange, EXCLUDE USING gist (room WITH &&, during WITH &&));
INSERT INTO booking SELECT int4range(i % 40, i % 40 + 1), tsrange(now()::timestamp + i * interval '1 day', now()::timestamp + (i + 1) * interval '1 day')
    FROM generate_series(1, 2000) i;
-- GiST: scans mark dead tuples, an insert into the full page removes them
CREATE TABLE gist_dead (p point) WITH (autovacuum_enabled = off);
CREATE INDEX gist_dead_p ON gist_dead USING gist (p);
INSERT INTO gist_dead SELECT point(i % 100, i / 100) FROM generate_series(1, 5000) i;
DELETE FROM gist_dead WHERE p[0] < 60;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*) FROM gist_dead WHERE p <@ box(point(-1, -1), point(1000, 1000));
SELECT count(*) FROM gist_dead WHERE p <@ box(point(-1, -1), point(1000, 1000));
RESET enable_seqscan;
RESET enable_bitmapscan;
INSERT INTO gist_dead SELECT point(i % 100, i / 100) FROM generate_series(1, 5000) i;
-- SP-GiST: text radix trees (new nodes, also in inner tuples that must move; split prefixes), quad and k-d trees, networks
CREATE TABLE spgist (id int, t text, p point, r int4range, a inet, b box) WITH (autovacuum_enabled = off);
CREATE INDEX spgist_t ON spgist USING spgist (t);
CREATE INDEX spgist_quad ON spgist USING spgist (p) INCLUDE (id);
CREATE INDEX spgist_kd ON spgist USING spgist (p kd_point_ops);
CREATE INDEX spgist_r ON spgist USING spgist (r);
CREATE INDEX spgist_a ON spgist USING spgist (a);
CREATE INDEX spgist_b ON spgist USING spgist (b);
INSERT INTO spgist SELECT i, md5(i::text), point(random() * 1000, random() * 1000), int4range(i % 777, i % 777 + i % 9),
    ('10.' || i % 7 || '.' || i % 251 || '.' || i % 83)::inet, box(point(i % 91, i % 89), point(i % 97, i % 101))
    FROM generate_series(1, 8000) i;
INSERT INTO spgist (id, t) SELECT n, chr(65 + p) || chr(33 + n) || repeat(md5(n::text), 6)
    FROM generate_series(0, 91) n, generate_series(0, 30) p ORDER BY n, p;
INSERT INTO spgist (id, t) SELECT n, 'common/prefix/of/many/' || repeat('x', 60 - n % 60) || n FROM generate_series(1, 4000) n;
INSERT INTO spgist (id, t) SELECT n, left('common/prefix/of/many/' || repeat('x', 60), n % 80) || '#' || n FROM generate_series(1, 2000) n;
INSERT INTO spgist (id) SELECT generate_series(1, 3000);
INSERT INTO spgist (id, t, p) SELECT n, 'same', point(1, 1) FROM generate_series(1, 2000) n;
DELETE FROM spgist WHERE id % 3 = 0;
VACUUM spgist;
INSERT INTO spgist (id, t, p, a) SELECT i, md5((i * 7)::text), point(random() * 10, random() * 10), ('fd00::' || i % 9999)::inet
    FROM generate_series(1, 6000) i;
DELETE FROM spgist WHERE id % 7 <> 1;
SELECT count(pg_current_xact_id());
VACUUM spgist;
INSERT INTO spgist (id, t, p) SELECT i, repeat('y', i % 50) || i, point(i % 100, i % 77) FROM generate_series(1, 4000) i;
DELETE FROM spgist;
VACUUM spgist;
VACUUM spgist;
INSERT INTO spgist (id, t, p) SELECT i, md5(i::text), point(i % 100, i % 77) FROM generate_series(1, 3000) i;
-- SP-GiST: a root that is still a leaf
CREATE TABLE spgist_small (t text) WITH (autovacuum_enabled = off);
CREATE INDEX spgist_small_t ON spgist_small USING spgist (t);
INSERT INTO spgist_small SELECT 'small' || i FROM generate_series(1, 20) i;
DELETE FROM spgist_small WHERE t LIKE '%3';
VACUUM spgist_small;
DELETE FROM spgist_small;
VACUUM spgist_small;
INSERT INTO spgist_small SELECT 'small' || i FROM generate_series(1, 20) i;
CHECKPOINT;
