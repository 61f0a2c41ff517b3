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
