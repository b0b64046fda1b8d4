use crate::identity::TrustDomain;
use crate::world::security::Pattern;

/// In principals it means the mesh's own trust domain, whatever that is called.
const OWN: &str = "cluster.local";

/// The names of the mesh's own trust domain.
#[derive(Clone, Debug)]
pub(crate) struct TrustDomains<'a>(Vec<&'a str>);

impl<'a> TrustDomains<'a> {
    pub fn new(own: &'a TrustDomain, aliases: &'a [TrustDomain]) -> Self {
        Self([own].into_iter().chain(aliases).map(TrustDomain::as_str).collect())
    }

    pub fn is_ours(&self, trust_domain: &str) -> bool {
        trust_domain == OWN || self.0.contains(&trust_domain)
    }

    /// The principal as it is written, and with each other name of the trust domain where it names ours.
    pub fn expand(&self, principal: &Pattern) -> Vec<Pattern> {
        let mut found = vec![principal.clone()];
        let with = |trust_domain: &str, rest: &str| format!("{trust_domain}/{rest}");
        match principal {
            Pattern::Exact(text) | Pattern::Prefix(text) => {
                let Some((written, rest)) = text.split_once('/').filter(|(written, _)| self.is_ours(written))
                else {
                    return found;
                };
                for name in self.0.iter().filter(|name| **name != written) {
                    let text = with(name, rest);
                    found.push(match principal {
                        Pattern::Exact(_) => Pattern::Exact(text),
                        _ => Pattern::Prefix(text),
                    });
                }
            }
            Pattern::Suffix(text) => {
                let Some((end, rest)) = text.split_once('/').filter(|(end, rest)| {
                    !end.is_empty()
                        && rest.starts_with("ns/")
                        && self.0.iter().any(|name| name.ends_with(end))
                }) else {
                    return found;
                };
                let others = self.0.iter().filter(|name| !name.ends_with(end));
                found.extend(others.map(|name| Pattern::Exact(with(name, rest))));
            }
            Pattern::Present => {}
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_of_our_trust_domain_stands_for_all() {
        let table = [
            ("cluster.local/ns/a/sa/b", &["cluster.local/ns/a/sa/b", "td1/ns/a/sa/b", "td2/ns/a/sa/b"][..]),
            ("td2/ns/a/*", &["td2/ns/a/*", "td1/ns/a/*"]),
            ("other/ns/a/sa/b", &["other/ns/a/sa/b"]),
            ("*/ns/a/sa/b", &["*/ns/a/sa/b"]),
            ("*d2/ns/a/sa/b", &["*d2/ns/a/sa/b", "td1/ns/a/sa/b"]),
            ("*/sa/b", &["*/sa/b"]),
            ("td*", &["td*"]),
            ("*", &["*"]),
        ];
        let (own, alias) = ("td1".parse().unwrap(), ["td2".parse().unwrap()]);
        let trust = TrustDomains::new(&own, &alias);
        for (written, want) in table {
            let found = trust.expand(&written.parse().unwrap());
            assert_eq!(found.iter().map(Pattern::to_string).collect::<Vec<_>>(), want, "{written}");
        }
    }
}
