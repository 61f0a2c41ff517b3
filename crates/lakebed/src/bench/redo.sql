CREATE TABLE w (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    k int, tags int[], place point, name text, span int
) WITH (fillfactor = 70);
CREATE INDEX w_btree ON w (k);
CREATE INDEX w_hash ON w USING hash (k);
CREATE INDEX w_gin ON w USING gin (tags) WITH (fastupdate = off);
CREATE INDEX w_gist ON w USING gist (place);
CREATE INDEX w_spgist ON w USING spgist (name);
CREATE INDEX w_brin ON w USING brin (span) WITH (pages_per_range = 1, autosummarize = off);
INSERT INTO w (k, tags, place, name, span)
SELECT (random() * 20000)::int, ARRAY[(random() * 300)::int, (random() * 300)::int],
       point(random() * 1000, random() * 1000), md5(i::text), i
FROM generate_series(1, 2000) i;
SELECT brin_summarize_new_values('w_brin');
