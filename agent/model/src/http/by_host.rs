use std::collections::HashMap;

/// What is said of hosts, by a host's own name or for all whose names end alike.
#[derive(Clone, Debug)]
pub(super) struct ByHost<T> {
    whole: HashMap<String, T>,
    /// By what follows the `*`.
    wildcards: HashMap<String, T>,
}

impl<T> Default for ByHost<T> {
    fn default() -> Self {
        Self { whole: HashMap::new(), wildcards: HashMap::new() }
    }
}

impl<T> ByHost<T> {
    /// What is said of a host in full, which is `*` or begins with `*.` where it stands for many.
    pub fn entry(&mut self, host: &str) -> &mut T
    where
        T: Default,
    {
        match host.strip_prefix('*') {
            Some(suffix) => self.wildcards.entry(suffix.to_owned()).or_default(),
            None => self.whole.entry(host.to_owned()).or_default(),
        }
    }

    /// What is said of a host in full itself; see [`entry`](Self::entry).
    pub fn get(&self, host: &str) -> Option<&T> {
        match host.strip_prefix('*') {
            Some(suffix) => self.wildcards.get(suffix),
            None => self.whole.get(host),
        }
    }

    /// What is said of a host, or of one that itself stands for many, the most specific first.
    pub fn of(&self, host: &str) -> impl Iterator<Item = &T> {
        let suffixes = host.match_indices('.').map(move |(at, _)| &host[at..]).chain([""]);
        self.whole.get(host).into_iter().chain(suffixes.filter_map(|suffix| self.wildcards.get(suffix)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_comes_first() {
        let mut hosts: ByHost<Vec<&str>> = ByHost::default();
        for host in ["*", "*.example.com", "a.b.example.com", "*.b.example.com", "b.example.com"] {
            hosts.entry(host).push(host);
        }
        let of = |host| hosts.of(host).flatten().copied().collect::<Vec<_>>();
        assert_eq!(of("a.b.example.com"), ["a.b.example.com", "*.b.example.com", "*.example.com", "*"]);
        assert_eq!(of("b.example.com"), ["b.example.com", "*.example.com", "*"]);
        assert_eq!(of("example.com"), ["*"]);
        assert_eq!(of("*.b.example.com"), ["*.b.example.com", "*.example.com", "*"]);
    }
}
