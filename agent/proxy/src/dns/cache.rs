//! What resolvers have said, for one pod: a pod that can lead a resolver's address to itself must not answer for
//! others.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RData,
};

use super::message::Question;

/// However long a resolver wants an answer to be remembered, and for how long after that it may still be given
/// (RFC 8767, 4).
const LONGEST: Duration = Duration::from_secs(86400);
/// Answers that say that there is nothing (RFC 2308, 5).
const LONGEST_NEGATIVE: Duration = Duration::from_secs(3600);
/// How long not to ask again a resolver that did not answer, where an old answer serves (RFC 8767, 5).
const RECHECK: Duration = Duration::from_secs(30);
/// Besides the message itself.
const OVERHEAD: usize = 256;

/// The question, and of whom.
pub(super) type Key = (SocketAddr, Question);

/// What is remembered of a question.
#[derive(Clone, Debug)]
pub(super) enum Memory {
    /// The answer, and its age.
    Fresh(Arc<Message>, Duration),
    /// The answer has expired: to be given if the resolver has none.
    Stale(Arc<Message>),
    /// The answer has expired, and a moment ago the resolver had none.
    Resting(Arc<Message>),
    Nothing,
}

/// Bounded by the size of what it holds; what was used longest ago goes first.
pub(super) struct Cache<K = Key> {
    limit: usize,
    size: usize,
    entries: HashMap<K, Entry>,
    /// By when it was used last.
    order: BTreeMap<u64, K>,
    uses: u64,
}

struct Entry {
    message: Arc<Message>,
    stored: Instant,
    ttl: Duration,
    rest_until: Option<Instant>,
    size: usize,
    used: u64,
}

impl<K: Clone + Eq + Hash> Cache<K> {
    /// For as many bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, size: 0, entries: HashMap::new(), order: BTreeMap::new(), uses: 0 }
    }

    pub(super) fn get(&mut self, key: &K, now: Instant) -> Memory {
        let Some(entry) = self.entries.get_mut(key) else { return Memory::Nothing };
        let age = now.saturating_duration_since(entry.stored);
        let message = Arc::clone(&entry.message);
        if age >= entry.ttl + LONGEST {
            self.remove(key);
            return Memory::Nothing;
        }
        self.uses += 1;
        if let Some(key) = self.order.remove(&entry.used) {
            self.order.insert(self.uses, key);
        }
        entry.used = self.uses;
        if age < entry.ttl {
            return Memory::Fresh(message, age);
        }
        if entry.rest_until.is_some_and(|until| now < until) {
            return Memory::Resting(message);
        }
        Memory::Stale(message)
    }

    /// Takes in what a resolver said, in as many bytes, if it may be remembered.
    pub(super) fn put(&mut self, key: K, message: Arc<Message>, bytes: usize, now: Instant) {
        let size = bytes + OVERHEAD;
        let Some(ttl) = ttl(&message).filter(|_| size <= self.limit) else { return };
        self.remove(&key);
        while self.size + size > self.limit {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.remove(&oldest);
        }
        self.uses += 1;
        self.size += size;
        self.order.insert(self.uses, key.clone());
        let entry = Entry { message, stored: now, ttl, rest_until: None, size, used: self.uses };
        self.entries.insert(key, entry);
    }

    /// The resolver had no answer.
    pub(super) fn rest(&mut self, key: &K, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.rest_until = Some(now + RECHECK);
        }
    }

    fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.size -= entry.size;
        }
    }
}

/// For how long a message may be remembered; `None` for not at all.
fn ttl(message: &Message) -> Option<Duration> {
    if message.metadata.truncation {
        return None;
    }
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let ttl = match message.metadata.response_code {
        ResponseCode::NoError if !message.answers.is_empty() => {
            seconds(message.answers.iter().map(|record| record.ttl).min()?).min(LONGEST)
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let authority = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
                _ => None,
            });
            seconds(authority?).min(LONGEST_NEGATIVE)
        }
        _ => return None,
    };
    (!ttl.is_zero()).then_some(ttl)
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::OpCode,
        rr::{Name, Record, rdata::SOA},
    };

    use super::*;

    fn said(ttl: u32) -> Arc<Message> {
        let mut message = Message::response(1, OpCode::Query);
        let data = RData::A(std::net::Ipv4Addr::LOCALHOST.into());
        message.answers.push(Record::from_rdata(Name::root(), ttl, data));
        Arc::new(message)
    }

    fn denied(ttl: u32, minimum: u32) -> Message {
        let mut message = Message::error_msg(1, OpCode::Query, ResponseCode::NXDomain);
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum);
        message.authorities.push(Record::from_rdata(Name::root(), ttl, RData::SOA(soa)));
        message
    }

    #[test]
    fn answers_age_expire_rest_and_go() {
        let (mut cache, start) = (Cache::new(10_000), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        cache.put("a", said(10), 50, start);
        assert!(matches!(cache.get(&"a", at(9)), Memory::Fresh(_, age) if age.as_secs() == 9));
        assert!(matches!(cache.get(&"a", at(10)), Memory::Stale(_)));
        cache.rest(&"a", at(10));
        assert!(matches!(cache.get(&"a", at(39)), Memory::Resting(_)));
        assert!(matches!(cache.get(&"a", at(40)), Memory::Stale(_)));
        assert!(matches!(cache.get(&"a", at(86410)), Memory::Nothing));
        assert_eq!((cache.size, cache.order.len()), (0, 0));
    }

    #[test]
    fn it_stays_within_its_bounds_and_keeps_what_is_used() {
        let (mut cache, now) = (Cache::new(10 * (50 + OVERHEAD)), Instant::now());
        for n in 0..1000 {
            cache.put(n, said(10), 50, now);
            assert!(matches!(cache.get(&0, now), Memory::Fresh(..)));
            assert!(cache.size <= cache.limit);
            assert_eq!(cache.entries.len(), cache.order.len());
        }
        assert_eq!(cache.entries.len(), 10);
        cache.put(0, said(10), 1 << 20, now);
        assert!(cache.entries.len() == 10);
    }

    #[test]
    fn only_what_says_for_how_long_is_kept() {
        assert_eq!(ttl(&said(10)), Some(Duration::from_secs(10)));
        assert_eq!(ttl(&said(0)), None);
        assert_eq!(ttl(&said(u32::MAX)), Some(LONGEST));
        assert_eq!(ttl(&denied(60, 5)), Some(Duration::from_secs(5)));
        assert_eq!(ttl(&denied(5, 60)), Some(Duration::from_secs(5)));
        assert_eq!(ttl(&Message::error_msg(1, OpCode::Query, ResponseCode::NXDomain)), None);
        assert_eq!(ttl(&Message::error_msg(1, OpCode::Query, ResponseCode::ServFail)), None);
        let mut cut = Message::clone(&said(10));
        cut.metadata.truncation = true;
        assert_eq!(ttl(&cut), None);
    }
}
