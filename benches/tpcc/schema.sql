-- Tables of an order-entry workload in the manner of TPC-C, and its five transactions as functions. Not the benchmark of
-- the TPC: no think times, no keying, nothing audited. `:warehouses` is put in by who runs it.
create function letters(shortest int, longest int) returns text language sql volatile as $$
  select string_agg(chr(97 + (random() * 25)::int), '') from generate_series(1, shortest + (random() * (longest - shortest))::int)
$$;
create table warehouse (w_id int primary key, w_name text, w_street text, w_city text, w_tax numeric(4, 4), w_ytd numeric(12, 2))
  with (fillfactor = 50);
create table district (d_w_id int, d_id int, d_name text, d_street text, d_city text, d_tax numeric(4, 4), d_ytd numeric(12, 2),
  d_next_o_id int, primary key (d_w_id, d_id)) with (fillfactor = 50);
create table customer (c_w_id int, c_d_id int, c_id int, c_first text, c_middle char(2), c_last text, c_street text, c_city text,
  c_since timestamptz, c_credit char(2), c_credit_lim numeric(12, 2), c_discount numeric(4, 4), c_balance numeric(12, 2),
  c_ytd_payment numeric(12, 2), c_payment_cnt int, c_delivery_cnt int, c_data text, primary key (c_w_id, c_d_id, c_id));
create table history (h_c_id int, h_c_d_id int, h_c_w_id int, h_d_id int, h_w_id int, h_date timestamptz, h_amount numeric(6, 2),
  h_data text);
create table orders (o_w_id int, o_d_id int, o_id int, o_c_id int, o_entry_d timestamptz, o_carrier_id int, o_ol_cnt int,
  o_all_local int, primary key (o_w_id, o_d_id, o_id));
create table new_order (no_w_id int, no_d_id int, no_o_id int, primary key (no_w_id, no_d_id, no_o_id));
create table order_line (ol_w_id int, ol_d_id int, ol_o_id int, ol_number int, ol_i_id int, ol_supply_w_id int,
  ol_delivery_d timestamptz, ol_quantity int, ol_amount numeric(6, 2), ol_dist_info char(24),
  primary key (ol_w_id, ol_d_id, ol_o_id, ol_number));
create table item (i_id int primary key, i_im_id int, i_name text, i_price numeric(5, 2), i_data text);
create table stock (s_w_id int, s_i_id int, s_quantity int, s_dist char(24), s_ytd int, s_order_cnt int, s_remote_cnt int,
  s_data text, primary key (s_w_id, s_i_id));

insert into warehouse select w, letters(6, 10), letters(10, 20), letters(10, 20), random() / 5, 300000
  from generate_series(1, :warehouses) w;
insert into district select w, d, letters(6, 10), letters(10, 20), letters(10, 20), random() / 5, 30000, 3001
  from generate_series(1, :warehouses) w, generate_series(1, 10) d;
insert into item select i, (random() * 10000)::int, letters(14, 24), 1 + random() * 99, letters(26, 50)
  from generate_series(1, 100000) i;
insert into stock select w, i, 10 + (random() * 90)::int, md5(i::text)::char(24), 0, 0, 0, md5((w + i)::text)
  from generate_series(1, :warehouses) w, generate_series(1, 100000) i;
insert into customer select w, d, c, md5(c::text)::char(12), 'OE', 'NAME' || c % 1000, md5((c + d)::text)::char(20),
    md5((c + w)::text)::char(15), now(), case when random() < 0.1 then 'BC' else 'GC' end, 50000, random() / 2, -10, 10, 1, 0,
    repeat(md5((w * d + c)::text), 10)
  from generate_series(1, :warehouses) w, generate_series(1, 10) d, generate_series(1, 3000) c;
insert into orders select w, d, o, 1 + (o * 7919) % 3000, now(), case when o < 2101 then 1 + o % 10 end, 10, 1
  from generate_series(1, :warehouses) w, generate_series(1, 10) d, generate_series(1, 3000) o;
insert into new_order select w, d, o
  from generate_series(1, :warehouses) w, generate_series(1, 10) d, generate_series(2101, 3000) o;
insert into order_line select w, d, o, l, 1 + (random() * 99999)::int, w, case when o < 2101 then now() end, 5,
    random() * 9999, md5(o::text)::char(24)
  from generate_series(1, :warehouses) w, generate_series(1, 10) d, generate_series(1, 3000) o, generate_series(1, 10) l;
create index on customer (c_w_id, c_d_id, c_last, c_first);
create index on orders (o_w_id, o_d_id, o_c_id, o_id);

create function some_item() returns int language sql volatile as $$
  select (((random() * 8191)::int | (1 + (random() * 99999)::int)) + 7911) % 100000 + 1
$$;
create function some_customer() returns int language sql volatile as $$
  select (((random() * 1023)::int | (1 + (random() * 2999)::int)) + 259) % 3000 + 1
$$;

create function new_order(w int, d int, warehouses int) returns void language plpgsql as $$
declare c int := some_customer(); o int; lines int := 5 + (random() * 10)::int; i int; from_w int; q int; cost numeric; dist text;
begin
  perform c_discount, w_tax from warehouse, customer where w_id = w and c_w_id = w and c_d_id = d and c_id = c;
  update district set d_next_o_id = d_next_o_id + 1 where d_w_id = w and d_id = d returning d_next_o_id - 1 into o;
  insert into orders values (w, d, o, c, now(), null, lines, 1);
  insert into new_order values (w, d, o);
  for l in 1 .. lines loop
    i := some_item();
    from_w := case when random() < 0.01 then 1 + (random() * (warehouses - 1))::int else w end;
    q := 1 + (random() * 9)::int;
    select i_price into cost from item where i_id = i;
    update stock set s_quantity = case when s_quantity >= q + 10 then s_quantity - q else s_quantity - q + 91 end,
        s_ytd = s_ytd + q, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + (from_w <> w)::int
      where s_w_id = from_w and s_i_id = i returning s_dist into dist;
    insert into order_line values (w, d, o, l, i, from_w, null, q, q * cost, dist);
  end loop;
  -- One in a hundred names an item that does not exist, and is rolled back.
  if random() < 0.01 then raise exception using errcode = '40001', message = 'rolled back on purpose'; end if;
exception when serialization_failure then null;
end $$;

create function payment(w int, d int) returns void language plpgsql as $$
declare c int := some_customer(); amount numeric := 1 + random() * 4999; credit text;
begin
  update warehouse set w_ytd = w_ytd + amount where w_id = w;
  update district set d_ytd = d_ytd + amount where d_w_id = w and d_id = d;
  if random() < 0.6 then
    select c_id into c from customer where c_w_id = w and c_d_id = d and c_last = 'NAME' || c % 1000
      order by c_first offset 1 limit 1;
  end if;
  update customer set c_balance = c_balance - amount, c_ytd_payment = c_ytd_payment + amount, c_payment_cnt = c_payment_cnt + 1
    where c_w_id = w and c_d_id = d and c_id = c returning c_credit into credit;
  if credit = 'BC' then
    update customer set c_data = left(c || ' ' || d || ' ' || w || ' ' || amount || ' ' || c_data, 500)
      where c_w_id = w and c_d_id = d and c_id = c;
  end if;
  insert into history values (c, d, w, d, w, now(), amount, 'paid in warehouse ' || w);
end $$;

create function order_status(w int, d int) returns void language plpgsql as $$
declare c int := some_customer(); o int;
begin
  perform c_balance from customer where c_w_id = w and c_d_id = d and c_id = c;
  select max(o_id) into o from orders where o_w_id = w and o_d_id = d and o_c_id = c;
  perform * from order_line where ol_w_id = w and ol_d_id = d and ol_o_id = o;
end $$;

create function delivery(w int) returns void language plpgsql as $$
declare o int; c int; total numeric; carrier int := 1 + (random() * 9)::int;
begin
  for d in 1 .. 10 loop
    select no_o_id into o from new_order where no_w_id = w and no_d_id = d order by no_o_id limit 1 for update skip locked;
    continue when o is null;
    delete from new_order where no_w_id = w and no_d_id = d and no_o_id = o;
    update orders set o_carrier_id = carrier where o_w_id = w and o_d_id = d and o_id = o returning o_c_id into c;
    update order_line set ol_delivery_d = now() where ol_w_id = w and ol_d_id = d and ol_o_id = o;
    select sum(ol_amount) into total from order_line where ol_w_id = w and ol_d_id = d and ol_o_id = o;
    update customer set c_balance = c_balance + total, c_delivery_cnt = c_delivery_cnt + 1
      where c_w_id = w and c_d_id = d and c_id = c;
  end loop;
end $$;

create function stock_level(w int, d int) returns bigint language sql as $$
  select count(distinct s_i_id) from district, order_line, stock
    where d_w_id = w and d_id = d and ol_w_id = w and ol_d_id = d and ol_o_id between d_next_o_id - 20 and d_next_o_id - 1
      and s_w_id = w and s_i_id = ol_i_id and s_quantity < 15
$$;
