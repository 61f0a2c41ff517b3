\set w random(1, :warehouses)
\set d random(1, 10)
select new_order(:w, :d, :warehouses);
