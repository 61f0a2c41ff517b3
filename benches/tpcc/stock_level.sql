\set w random(1, :warehouses)
\set d random(1, 10)
select stock_level(:w, :d);
