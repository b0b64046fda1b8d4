use std::collections::HashMap;

/// Stands for every host.
pub(crate) const ANY: &str = "*";
/// The longest name that DNS has.
const MAX: usize = 253;

/// What there is for hosts: of a name, of all names under another, and of any.
#[derive(Clone, Debug)]
pub(crate) struct HostMap<T> {
    exact: HashMap<String, T>,
    /// By what names end with, such as `.example.com`.
    under: HashMap<String, T>,
    any: Option<T>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), under: HashMap::new(), any: None }
    }
}

impl<T> HostMap<T> {
    /// `host` may be [`ANY`] or begin with `*.`.
    pub fn insert(&mut self, host: &str, value: T) {
        match host.strip_prefix('*') {
            Some("") => self.any = Some(value),
            Some(suffix) => drop(self.under.insert(suffix.to_owned(), value)),
            None => drop(self.exact.insert(host.to_owned(), value)),
        }
    }

    /// All that there is.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.under.values()).chain(&self.any)
    }

    /// What there is for a host, the most specific first.
    pub fn of(&self, host: &str) -> impl Iterator<Item = &T> {
        // What is longer is no name: nobody looks at each of its dots.
        let host = if host.len() > MAX { "" } else { host };
        let suffixes = host.match_indices('.').filter(|(at, _)| *at > 0).map(|(at, _)| &host[at..]);
        let under = suffixes.filter_map(|suffix| self.under.get(suffix));
        self.exact.get(host).into_iter().chain(under).chain(&self.any)
    }
}

/// What two hostnames have in common, either of which may begin with `*.` or be [`ANY`]; `None` where that is nothing.
pub(super) fn intersection<'h>(one: &'h str, other: &'h str) -> Option<&'h str> {
    if one == other || covers(other, one) {
        return Some(one);
    }
    covers(one, other).then_some(other)
}

fn covers(wide: &str, host: &str) -> bool {
    wide.strip_prefix('*')
        .is_some_and(|suffix| suffix.is_empty() || (host.len() > suffix.len() && host.ends_with(suffix)))
}

/// Whether it is a name of DNS in lower case, perhaps after `*.`.
pub(super) fn is_hostname(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    text.len() <= MAX && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostnames_intersect_as_the_specification_has_it() {
        for (one, other, wanted) in [
            ("a.example.com", "a.example.com", Some("a.example.com")),
            ("a.example.com", "b.example.com", None),
            ("*.example.com", "a.example.com", Some("a.example.com")),
            ("a.example.com", "*.example.com", Some("a.example.com")),
            ("*.example.com", "a.b.example.com", Some("a.b.example.com")),
            ("*.example.com", "example.com", None),
            ("*.example.com", "notexample.com", None),
            ("*.example.com", "*.b.example.com", Some("*.b.example.com")),
            ("*.example.com", "*.example.com", Some("*.example.com")),
            ("*.example.com", "*.example.net", None),
            ("*", "a.example.com", Some("a.example.com")),
            ("*.example.com", "*", Some("*.example.com")),
            ("*", "*", Some("*")),
        ] {
            assert_eq!(intersection(one, other), wanted, "{one} {other}");
        }
    }

    #[test]
    fn the_most_specific_comes_first() {
        let mut map = HostMap::default();
        for host in ["*", "*.com", "*.example.com", "a.example.com"] {
            map.insert(host, host);
        }
        let of = |host: &str| map.of(host).copied().collect::<Vec<_>>();
        assert_eq!(of("a.example.com"), ["a.example.com", "*.example.com", "*.com", "*"]);
        assert_eq!(of("b.a.example.com"), ["*.example.com", "*.com", "*"]);
        assert_eq!(of("example.com"), ["*.com", "*"]);
        assert_eq!(of(".example.com"), ["*.com", "*"]);
        assert_eq!(of(""), ["*"]);
        assert_eq!(of(&".com".repeat(10_000)), ["*"]);
    }

    #[test]
    fn a_hostname_is_a_name_of_dns() {
        for good in ["example.com", "*.example.com", "a", "xn--a-1.b"] {
            assert!(is_hostname(good), "{good}");
        }
        for bad in ["", "*", "*.", "a..b", "a.*.b", "A.b", "a_b", "-a", "a-", "a b", "10.0.0.1:80"] {
            assert!(!is_hostname(bad), "{bad}");
        }
    }
}
