//! Connection strings: `lakebed://controller:port[,…][/TENANT[/BRANCH]]`.

use std::str::FromStr;

use anyhow::{Context, bail};

/// A parsed connection string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Addresses of controllers, `host:port`.
    pub controllers: Vec<String>,
    /// Name or id of a tenant.
    pub tenant: Option<String>,
    /// Name of a branch.
    pub branch: Option<String>,
}

impl FromStr for Connection {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Connection> {
        let form = "a connection string has the form lakebed://controller:port[,…]/TENANT/BRANCH";
        let rest = text
            .strip_prefix("lakebed://")
            .with_context(|| format!("`{text}`: {form}"))?;
        let mut parts = rest.split('/');
        let controllers: Vec<String> = parts
            .next()
            .unwrap_or_default()
            .split(',')
            .map(str::to_owned)
            .collect();
        for address in &controllers {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                bail!("`{address}` in `{text}` is not host:port; {form}");
            }
        }
        let tenant = parts
            .next()
            .filter(|tenant| !tenant.is_empty())
            .map(str::to_owned);
        let branch = parts
            .next()
            .filter(|branch| !branch.is_empty())
            .map(str::to_owned);
        if (tenant.is_none() && branch.is_some()) || parts.next().is_some() {
            bail!("`{text}`: {form}");
        }
        Ok(Connection {
            controllers,
            tenant,
            branch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ones_are_taken_apart_and_bad_ones_name_what_is_wrong() {
        let two: Connection = "lakebed://a:7000,b:7001/acme/main".parse().unwrap();
        assert_eq!(two.controllers, ["a:7000", "b:7001"]);
        assert_eq!(
            (two.tenant.as_deref(), two.branch.as_deref()),
            (Some("acme"), Some("main"))
        );
        let none: Connection = "lakebed://[::1]:7000/acme".parse().unwrap();
        assert_eq!((none.controllers.len(), none.branch), (1, None));
        for bad in [
            "postgresql://a:7000/acme/main",
            "lakebed://a/acme/main",
            "lakebed://:7000/acme/main",
            "lakebed://a",
            "lakebed://a:7000//main",
            "lakebed://a:7000/acme/main/more",
            "lakebed://a:99999/acme/main",
        ] {
            assert!(bad.parse::<Connection>().is_err(), "{bad}");
        }
    }
}
