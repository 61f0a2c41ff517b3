-- Record types that only special circumstances make. For psql, on a server with wal_level=logical and test_decoding, whose
-- transaction and multixact ids stand at the begin of a segment of pg_xact and pg_multixact.
SELECT pg_create_logical_replication_slot('decoder', 'test_decoding');
CREATE TABLE rewritten (a int, b text) WITH (user_catalog_table = true);
INSERT INTO rewritten SELECT i, 'x' FROM generate_series(1, 100) i;
BEGIN;
UPDATE rewritten SET b = 'y' WHERE a < 50;
DELETE FROM rewritten WHERE a > 90;
COMMIT;
VACUUM FULL rewritten;
TRUNCATE rewritten;
SELECT pg_drop_replication_slot('decoder');
-- about the log itself
SELECT pg_create_restore_point('here');
SELECT pg_backup_start('by hand', true);
SELECT lsn IS NOT NULL FROM pg_backup_stop(false);
ALTER SYSTEM SET full_page_writes = off;
SELECT pg_reload_conf();
CHECKPOINT;
SELECT pg_switch_wal() IS NOT NULL;
-- transactions beyond a segment of pg_commit_ts; then nobody needs what came before
CREATE TABLE burnt (a int);
DO $$
BEGIN
    FOR i IN 1..60000 LOOP
        BEGIN
            INSERT INTO burnt VALUES (i);
        EXCEPTION WHEN division_by_zero THEN NULL;
        END;
    END LOOP;
END
$$;
ALTER DATABASE template0 ALLOW_CONNECTIONS true;
\c template0
VACUUM (FREEZE);
\c template1
VACUUM (FREEZE);
\c postgres
VACUUM (FREEZE);
ALTER DATABASE template0 ALLOW_CONNECTIONS false;
CHECKPOINT;
