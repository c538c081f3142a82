//! Which addresses of each network are claimed, as runs of neighbours: the first free one is found without walking all
//! that are not, so that an address costs the same in a network of ten and of ten thousand.

use std::net::Ipv4Addr;

use imbl::OrdMap;
use lightbyte_api::Name;

/// Runs of claimed addresses: (network, first) and the last. No two of a network overlap or touch.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Runs(OrdMap<(Name, u32), u32>);

impl Runs {
    /// The address is claimed, if it was not.
    pub(crate) fn add(&mut self, network: &Name, address: Ipv4Addr) {
        let address = u32::from(address);
        if self.around(network, address).is_some() {
            return;
        }
        let below = address.checked_sub(1).and_then(|below| self.around(network, below));
        let above = address.checked_add(1).and_then(|above| self.around(network, above));
        if let Some((first, _)) = above {
            self.0.remove(&(network.clone(), first));
        }
        let first = below.map_or(address, |(first, _)| first);
        self.0.insert((network.clone(), first), above.map_or(address, |(_, last)| last));
    }

    /// The address is claimed no more, if it was.
    pub(crate) fn remove(&mut self, network: &Name, address: Ipv4Addr) {
        let address = u32::from(address);
        let Some((first, last)) = self.around(network, address) else { return };
        self.0.remove(&(network.clone(), first));
        if first < address {
            self.0.insert((network.clone(), first), address - 1);
        }
        if address < last {
            self.0.insert((network.clone(), address + 1), last);
        }
    }

    /// The first address from `from` on that is not claimed; `None` past the last of all.
    pub(crate) fn first_gap(&self, network: &Name, from: Ipv4Addr) -> Option<Ipv4Addr> {
        let gap = match self.around(network, from.into()) {
            None => Some(from.into()),
            Some((_, last)) => last.checked_add(1),
        };
        gap.map(Ipv4Addr::from)
    }

    /// The run that holds the address.
    fn around(&self, network: &Name, address: u32) -> Option<(u32, u32)> {
        let ((found, first), last) = self.0.range(..=(network.clone(), address)).next_back()?;
        (found == network && *last >= address).then_some((*first, *last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Every order of a few claims and releases, beside a plain set.
    #[test]
    fn gaps_are_those_of_a_plain_set() {
        let networks = [Name::new("a").unwrap(), Name::new("b").unwrap()];
        let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
        // A walk that visits each address of a small range many times, in an order without pattern.
        let mut place = 7_u32;
        for round in 0..4_000_u32 {
            place = place.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            let network = &networks[(place >> 9) as usize % 2];
            let address = Ipv4Addr::from((place >> 16) % 24);
            if (place >> 25).is_multiple_of(2) {
                runs.add(network, address);
                set.insert((network.clone(), address));
            } else {
                runs.remove(network, address);
                set.remove(&(network.clone(), address));
            }
            for from in 0..24 {
                let free = |address: &u32| !set.contains(&(network.clone(), Ipv4Addr::from(*address)));
                let expect = (from..).find(free).map(Ipv4Addr::from);
                assert_eq!(
                    runs.first_gap(network, Ipv4Addr::from(from)),
                    expect,
                    "round {round} from {from}"
                );
            }
        }
    }

    #[test]
    fn the_last_address_of_all_ends_the_search() {
        let network = Name::new("a").unwrap();
        let mut runs = Runs::default();
        runs.add(&network, Ipv4Addr::BROADCAST);
        assert_eq!(runs.first_gap(&network, Ipv4Addr::BROADCAST), None);
        runs.add(&network, Ipv4Addr::UNSPECIFIED);
        runs.remove(&network, Ipv4Addr::UNSPECIFIED);
        assert_eq!(runs.first_gap(&network, Ipv4Addr::UNSPECIFIED), Some(Ipv4Addr::UNSPECIFIED));
    }
}
