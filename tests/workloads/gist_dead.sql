-- GiST: scans mark dead tuples, an insert into the full page removes them
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
ALTER SYSTEM RESET autovacuum;
SELECT pg_reload_conf();
