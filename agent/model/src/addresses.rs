use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

/// The addresses of one thing: nearly always a single one, which takes no memory besides. Read like a slice.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Addresses {
    /// A single one.
    One([IpAddr; 1]),
    /// None, or several.
    Several(Box<[IpAddr]>),
}

impl Default for Addresses {
    fn default() -> Self {
        Self::Several(Box::default())
    }
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match self {
            Self::One(address) => address,
            Self::Several(addresses) => addresses,
        }
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(addresses: Vec<IpAddr>) -> Self {
        match addresses[..] {
            [address] => Self::One([address]),
            _ => Self::Several(addresses.into()),
        }
    }
}

impl<const N: usize> From<[IpAddr; N]> for Addresses {
    fn from(addresses: [IpAddr; N]) -> Self {
        Vec::from(addresses).into()
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        Vec::from_iter(addresses).into()
    }
}

impl<'a> IntoIterator for &'a Addresses {
    type Item = &'a IpAddr;
    type IntoIter = std::slice::Iter<'a, IpAddr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_what_they_were_made_of() {
        for count in 0..3 {
            let of: Vec<IpAddr> = (0..count).map(|last| [10, 0, 0, last].into()).collect();
            let addresses = Addresses::from(of.clone());
            assert_eq!(*addresses, of);
            let text = serde_json::to_string(&addresses).unwrap();
            assert_eq!(text, serde_json::to_string(&of).unwrap());
            assert_eq!(serde_json::from_str::<Addresses>(&text).unwrap(), addresses);
        }
        assert_eq!(size_of::<Addresses>(), size_of::<Vec<IpAddr>>());
    }
}
