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
