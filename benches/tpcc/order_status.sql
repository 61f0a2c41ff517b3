\set w random(1, :warehouses)
\set d random(1, 10)
select order_status(:w, :d);
