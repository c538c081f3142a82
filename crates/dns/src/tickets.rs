//! A limit for all together, and one for each client, so that none takes all from the rest.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Hands out tickets.
#[derive(Clone, Debug)]
pub(crate) struct Tickets(Arc<Held>);

#[derive(Debug)]
struct Held {
    /// At once, of all.
    all_max: usize,
    /// At once, of one client.
    one_max: usize,
    /// By client; none has none. What is held in all is their sum, kept beside it.
    held: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// Room for one thing, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    held: Arc<Held>,
    client: IpAddr,
}

impl Tickets {
    pub(crate) fn new(all_max: usize, one_max: usize) -> Tickets {
        Tickets(Arc::new(Held { all_max, one_max, held: Mutex::default() }))
    }

    /// A ticket for a client, if there is room.
    pub(crate) fn take(&self, client: IpAddr) -> Option<Ticket> {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_client) = &mut *held;
        let one = by_client.get(&client).copied().unwrap_or_default();
        if *all >= self.0.all_max || one >= self.0.one_max {
            return None;
        }
        *all += 1;
        by_client.insert(client, one + 1);
        Some(Ticket { held: Arc::clone(&self.0), client })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut held = self.held.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_client) = &mut *held;
        *all = all.saturating_sub(1);
        match by_client.get_mut(&self.client) {
            Some(one) if *one > 1 => *one -= 1,
            _ => {
                by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_all_and_what_is_given_back_is_given_again() {
        let tickets = Tickets::new(3, 2);
        let [first, second, third] = [1_u8, 2, 3].map(|number| IpAddr::from([10, 0, 0, number]));
        let own = [tickets.take(first), tickets.take(first)];
        assert!(own.iter().all(Option::is_some) && tickets.take(first).is_none());
        let other = tickets.take(second);
        assert!(other.is_some() && tickets.take(third).is_none());
        drop(own);
        let again: Vec<Ticket> =
            [third, third, first].into_iter().filter_map(|client| tickets.take(client)).collect();
        assert_eq!(again.len(), 2);
        drop((again, other));
        assert!(tickets.0.held.lock().expect("is whole").1.is_empty());
    }
}
