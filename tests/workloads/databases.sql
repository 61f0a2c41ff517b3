CREATE DATABASE by_log STRATEGY wal_log;
CREATE DATABASE by_copy TEMPLATE by_log STRATEGY file_copy;
\c by_copy
CREATE TABLE here (a int PRIMARY KEY, b text);
INSERT INTO here SELECT i, 'x' FROM generate_series(1, 3000) i;
UPDATE here SET b = 'y' WHERE a % 2 = 0;
VACUUM here;
\c postgres
CREATE DATABASE second_copy TEMPLATE by_copy STRATEGY file_copy;
\c second_copy
DELETE FROM here WHERE a > 2000;
VACUUM here;
INSERT INTO here SELECT i, 'x' FROM generate_series(5000, 6000) i;
\c postgres
ALTER DATABASE by_copy SET TABLESPACE ts;
CREATE TABLE in_ts (a int) TABLESPACE ts;
INSERT INTO in_ts SELECT generate_series(1, 1000);
ALTER TABLE in_ts SET TABLESPACE pg_default;
DROP DATABASE by_log;
CREATE UNLOGGED TABLE unlogged (a int PRIMARY KEY, b text);
INSERT INTO unlogged SELECT i, 'x' FROM generate_series(1, 100) i;
CREATE TABLE shrinks AS SELECT i AS a, repeat('x', 500) AS b FROM generate_series(1, 2000) i;
VACUUM shrinks;
DELETE FROM shrinks WHERE a > 300;
VACUUM shrinks;
INSERT INTO shrinks SELECT i, repeat('y', 500) FROM generate_series(1, 500) i;
VACUUM FULL pg_class;
BEGIN;
CREATE TABLE gone (a int);
INSERT INTO gone VALUES (1);
ROLLBACK;
BEGIN;
INSERT INTO shrinks VALUES (-1, 'prepared');
PREPARE TRANSACTION 'left open';
