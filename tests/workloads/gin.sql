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
