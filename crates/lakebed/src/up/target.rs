//! Which branch a command about computes means: `BRANCH`, or `TENANT/BRANCH` for another tenant than the first.

use std::fmt;
use std::str::FromStr;

use anyhow::bail;

use super::tenant::TENANT;

/// A branch of some tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    tenant: String,
    branch: String,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Target> {
        let (tenant, branch) = text.split_once('/').unwrap_or((TENANT, text));
        // The names become part of a path.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = |name: &str| !name.is_empty() && !name.starts_with('.') && name.chars().all(plain);
        if !is_name(tenant) || !is_name(branch) {
            bail!("`{text}` is no name of a branch: give BRANCH or TENANT/BRANCH");
        }
        Ok(Target::new(tenant, branch))
    }
}

impl Target {
    /// From names that are known to be names.
    pub fn new(tenant: &str, branch: &str) -> Target {
        Target {
            tenant: tenant.to_owned(),
            branch: branch.to_owned(),
        }
    }

    /// Its tenant.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Its name.
    pub fn branch(&self) -> &str {
        &self.branch
    }

    /// Path of a connection string.
    pub fn path(&self) -> String {
        format!("{}/{}", self.tenant, self.branch)
    }

    /// A name for files, different for every branch: no name has an `@`.
    pub fn file_name(&self) -> String {
        if self.tenant == TENANT {
            self.branch.clone()
        } else {
            format!("{}@{}", self.tenant, self.branch)
        }
    }
}

/// As a user would write it.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tenant == TENANT {
            f.write_str(&self.branch)
        } else {
            write!(f, "{}/{}", self.tenant, self.branch)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_of_every_tenant_have_names_of_their_own() {
        let table = [
            ("main", "main", "default/main", "main"),
            ("default/main", "main", "default/main", "main"),
            ("acme/main", "acme/main", "acme/main", "acme@main"),
            ("acme/v1.2_x", "acme/v1.2_x", "acme/v1.2_x", "acme@v1.2_x"),
        ];
        for (text, shown, path, file) in table {
            let target: Target = text.parse().unwrap();
            assert_eq!(
                (target.to_string(), target.path(), target.file_name()),
                (shown.to_owned(), path.to_owned(), file.to_owned())
            );
        }
        for text in ["", "/", "a/", "/b", "a/b/c", "..", "a/..", "a@b", "a b"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
