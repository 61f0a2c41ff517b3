//! An order-entry workload in the manner of TPC-C: five types of transactions, in `benches/tpcc`.

use std::path::Path;

use anyhow::Context;
use postgres::{Client, NoTls};

const SCHEMA: &str = include_str!("../../../../benches/tpcc/schema.sql");

/// Name, weight in percent, script.
pub const TRANSACTIONS: [(&str, u32, &str); 5] = [
    (
        "new_order",
        45,
        include_str!("../../../../benches/tpcc/new_order.sql"),
    ),
    (
        "payment",
        43,
        include_str!("../../../../benches/tpcc/payment.sql"),
    ),
    (
        "order_status",
        4,
        include_str!("../../../../benches/tpcc/order_status.sql"),
    ),
    (
        "delivery",
        4,
        include_str!("../../../../benches/tpcc/delivery.sql"),
    ),
    (
        "stock_level",
        4,
        include_str!("../../../../benches/tpcc/stock_level.sql"),
    ),
];

/// Makes its tables in the server at this port. Blocks.
///
/// # Errors
/// The server refuses.
pub fn load(port: u16, warehouses: u32) -> anyhow::Result<()> {
    let url = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    let mut client = Client::connect(&url, NoTls)?;
    client
        .batch_execute(&SCHEMA.replace(":warehouses", &warehouses.to_string()))
        .context("loading the order-entry tables")?;
    Ok(client.batch_execute("vacuum analyze")?)
}

/// Arguments for pgbench; its scripts are written into a directory.
///
/// # Errors
/// They cannot be written.
pub fn arguments(directory: &Path, warehouses: u32) -> anyhow::Result<Vec<String>> {
    let mut arguments = vec![format!("--define=warehouses={warehouses}")];
    for (name, weight, script) in TRANSACTIONS {
        let path = directory.join(format!("{name}.sql"));
        std::fs::write(&path, script)?;
        arguments.push(format!("--file={}@{weight}", path.display()));
    }
    Ok(arguments)
}
