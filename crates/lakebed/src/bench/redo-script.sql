\set k random(1, 20000)
\set a random(1, 300)
\set b random(1, 300)
\set x random(1, 1000000)
\set y random(1, 1000000)
\set chance random(1, 1000)
INSERT INTO w (k, tags, place, name, span)
VALUES (:k, ARRAY[:a::int, :b::int], point(:x / 1000.0, :y / 1000.0), md5(:x::text), :y);
UPDATE w SET span = :x WHERE id = :k;
\if :chance < 200
DELETE FROM w WHERE id IN (SELECT id FROM w WHERE k > :k ORDER BY k LIMIT 2);
\endif
\if :chance = 1
VACUUM w;
\elif :chance < 10
SELECT brin_summarize_new_values('w_brin');
\endif
