//! Names held for a limited time, on the clock that commands carry.

use super::{Applied, MAX_TEXT_BYTES, changed};
use crate::command::{Outcome, Rejection};
use crate::name::Name;
use crate::state::{Lease, State};

impl State {
    pub(super) fn acquire_lease(&mut self, name: Name, holder: String, micros: u32) -> Applied {
        if holder.is_empty() || holder.len() > MAX_TEXT_BYTES {
            return Err(Rejection::Invalid(
                "the holder of a lease must have 1 to 255 characters",
            ));
        }
        let now = self.clock_unix_micros;
        self.leases.retain(|_, lease| lease.expires_unix_micros > now);
        if let Some(held) = self.leases.get(&name).filter(|lease| lease.holder != holder) {
            return Err(Rejection::LeaseHeld {
                name,
                holder: held.holder.clone(),
            });
        }
        let expires_unix_micros = now.saturating_add(i64::from(micros));
        self.leases.insert(
            name,
            Lease {
                holder,
                expires_unix_micros,
            },
        );
        Ok(Outcome::Applied)
    }

    pub(super) fn release_lease(&mut self, name: Name, holder: String) -> Applied {
        let now = self.clock_unix_micros;
        match self.leases.get(&name) {
            None => Ok(Outcome::Unchanged),
            Some(lease) if lease.holder != holder && lease.expires_unix_micros > now => {
                Err(Rejection::LeaseHeld {
                    name,
                    holder: lease.holder.clone(),
                })
            }
            Some(_) => Ok(changed(self.leases.remove(&name).is_some())),
        }
    }
}
