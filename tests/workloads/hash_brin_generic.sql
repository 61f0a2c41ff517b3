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
-- generic records: of bloom, where there is contrib, and of pgvector, where there is that; one of them has to be
SELECT bool_or(name = 'bloom') IS TRUE AS bloom, bool_or(name = 'vector') IS TRUE AS vector, count(*) = 0 AS neither
FROM pg_available_extensions WHERE name IN ('bloom', 'vector') \gset
\if :neither
CREATE EXTENSION bloom;
\endif
CREATE TABLE bl (a int, b int, c int) WITH (autovacuum_enabled = off);
INSERT INTO bl SELECT i, i % 100, i % 7 FROM generate_series(1, 2000) i;
\if :bloom
CREATE EXTENSION bloom;
CREATE INDEX bl_abc ON bl USING bloom (a, b, c);
\endif
\if :vector
CREATE EXTENSION vector;
ALTER TABLE bl ADD v vector(3) GENERATED ALWAYS AS (ARRAY[a, b, c]) STORED;
CREATE INDEX bl_lists ON bl USING ivfflat (v vector_l2_ops) WITH (lists = 10);
-- a graph: an insertion changes its neighbours' pages, and VACUUM finds new neighbours for what is left
CREATE TABLE graph (id int, v vector(8)) WITH (autovacuum_enabled = off);
INSERT INTO graph SELECT i, ARRAY(SELECT sin(i * j) FROM generate_series(1, 8) j)::vector FROM generate_series(1, 800) i;
CREATE INDEX graph_l2 ON graph USING hnsw (v vector_l2_ops) WITH (m = 4, ef_construction = 12);
CREATE INDEX graph_cosine ON graph USING hnsw (v vector_cosine_ops) WITH (m = 16, ef_construction = 32);
INSERT INTO graph SELECT i, ARRAY(SELECT cos(i * j) FROM generate_series(1, 8) j)::vector FROM generate_series(801, 1400) i;
DELETE FROM graph WHERE id % 3 = 0 OR id BETWEEN 500 AND 700;
VACUUM graph;
INSERT INTO graph SELECT i, ARRAY(SELECT sin(i + j) FROM generate_series(1, 8) j)::vector FROM generate_series(1401, 1800) i;
CREATE UNLOGGED TABLE graph_unlogged (v vector(2));
CREATE INDEX ON graph_unlogged USING hnsw (v vector_ip_ops);
\endif
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
