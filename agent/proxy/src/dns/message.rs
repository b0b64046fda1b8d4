//! Messages: reading queries, and making answers that fit them.

use std::{net::IpAddr, sync::Arc};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{CNAME, PTR, SOA, SRV, opt::EdnsOption},
    },
};
use orlop_model::{RecordData, Snapshot};

/// For how long what the snapshot says may be remembered, in seconds.
const TTL: u32 = 30;
/// And what it does not have: services come up.
const NEGATIVE_TTL: u32 = 5;
/// What fits every path (dnsflagday.net/2020), asked of resolvers.
const PAYLOAD: u16 = 1232;
/// Without EDNS (RFC 1035, 4.2.1).
const PLAIN_PAYLOAD: u16 = 512;
/// However much a client takes: nothing here crosses a network.
const MAX_PAYLOAD: u16 = 4096;
const HEADER: usize = 12;
/// Weight of all SRV records.
const WEIGHT: u16 = 1;
/// `EDE` of RFC 8914.
const EXTENDED_ERROR: u16 = 15;

/// What a client sent.
pub(super) enum Read {
    Query(Box<Query>),
    /// Nothing that is understood here, but perhaps by the resolver: other operations, classes, transfers,
    /// signatures.
    Opaque,
    /// Not a message, though its header is one's; with the answer.
    Malformed(Vec<u8>),
    /// Nothing that could be answered.
    Nothing,
}

/// A standard query: one question of class IN.
#[derive(Clone, Debug)]
pub(super) struct Query {
    message: Message,
    /// The name that the question's name stands for, to ask the resolver for.
    other: Option<Name>,
}

/// What makes two queries the same question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    /// In lower case, as is the next.
    name: Name,
    /// The name that stands for it.
    alias_of: Option<Name>,
    record_type: RecordType,
    recursion_desired: bool,
    checking_disabled: bool,
    edns: bool,
    dnssec_ok: bool,
}

/// Why an answer is not as it should be (RFC 8914, 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtendedError {
    StaleAnswer = 3,
    StaleNxdomainAnswer = 19,
    NoReachableAuthority = 22,
}

impl Query {
    pub(super) fn read(bytes: &[u8]) -> Read {
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Read::Nothing };
        if header[2] & 0x80 != 0 {
            return Read::Nothing;
        }
        if header[2] & 0x78 != 0 {
            return Read::Opaque;
        }
        let Ok(message) = Message::from_vec(bytes) else {
            let id = u16::from_be_bytes([header[0], header[1]]);
            let answer = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            return answer.to_vec().map_or(Read::Nothing, Read::Malformed);
        };
        let plain = message.answers.is_empty()
            && message.authorities.is_empty()
            && message.additionals.is_empty()
            && message.signature.is_none();
        match message.queries.as_slice() {
            [question]
                if plain
                    && question.query_class == DNSClass::IN
                    && !matches!(question.query_type, RecordType::AXFR | RecordType::IXFR) =>
            {
                Read::Query(Box::new(Self { message, other: None }))
            }
            _ => Read::Opaque,
        }
    }

    /// In lower case, without the final dot.
    pub(super) fn name(&self) -> String {
        let mut name = self.message.queries[0].name.to_lowercase().to_ascii();
        if name.ends_with('.') {
            name.pop();
        }
        name
    }

    /// The resolver is to be asked for `other`, and what it has is this name's.
    pub(super) fn stand_for(&mut self, other: &str) {
        self.other = fqdn(other);
    }

    fn asked_name(&self) -> &Name {
        self.other.as_ref().unwrap_or(&self.message.queries[0].name)
    }

    pub(super) fn record_type(&self) -> orlop_model::RecordType {
        match self.message.queries[0].query_type {
            RecordType::A => orlop_model::RecordType::A,
            RecordType::AAAA => orlop_model::RecordType::Aaaa,
            RecordType::SRV => orlop_model::RecordType::Srv,
            RecordType::PTR => orlop_model::RecordType::Ptr,
            RecordType::ANY => orlop_model::RecordType::Any,
            _ => orlop_model::RecordType::Other,
        }
    }

    pub(super) fn question(&self) -> Question {
        Question {
            name: self.asked_name().to_lowercase(),
            alias_of: self.other.as_ref().map(|_| self.message.queries[0].name.to_lowercase()),
            record_type: self.message.queries[0].query_type,
            recursion_desired: self.message.metadata.recursion_desired,
            checking_disabled: self.message.metadata.checking_disabled,
            edns: self.message.edns.is_some(),
            dnssec_ok: self.message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
        }
    }

    /// The same question for a resolver. What is between the client and its resolver alone, such as cookies, is
    /// not in it.
    pub(super) fn forwarded(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.message.metadata.recursion_desired;
        message.metadata.checking_disabled = self.message.metadata.checking_disabled;
        message.metadata.authentic_data = self.message.metadata.authentic_data;
        message.queries.clone_from(&self.message.queries);
        message.queries[0].name.clone_from(self.asked_name());
        if let Some(edns) = &self.message.edns {
            message.edns = Some(answer_edns(edns.flags().dnssec_ok, PAYLOAD));
        }
        message.to_vec().ok()
    }

    /// Makes a resolver's answer to the same question one to this query. False if it can't be made one.
    pub(super) fn adapt(&self, answer: &mut [u8]) -> bool {
        if self.other.is_none()
            && let Ok(query) = self.message.to_vec()
            && let Some(question) = question_of(&query)
            && let Some(place) = answer.get_mut(HEADER..HEADER + question.len())
        {
            place.copy_from_slice(question);
            answer[..2].copy_from_slice(&query[..2]);
            return true;
        }
        false
    }

    /// With records of the snapshot.
    pub(super) fn answer(
        &self,
        answers: Vec<orlop_model::Record>,
        additional: Vec<orlop_model::Record>,
    ) -> Message {
        let mut message = self.response(ResponseCode::NoError);
        message.metadata.authoritative = true;
        message.answers = answers.into_iter().filter_map(|record| self.record(record)).collect();
        message.additionals = additional.into_iter().filter_map(|record| self.record(record)).collect();
        message
    }

    /// Without records, but with how long that may be remembered (RFC 2308, 3).
    pub(super) fn deny(&self, snapshot: &Snapshot, code: ResponseCode) -> Message {
        let mut message = self.response(code);
        message.metadata.authoritative = true;
        let zone = fqdn(snapshot.cluster_domain()).filter(|zone| zone.zone_of(&self.message.queries[0].name));
        if let Some(zone) = zone
            && let (Ok(server), Ok(person)) = (zone.prepend_label("ns.dns"), zone.prepend_label("hostmaster"))
        {
            let serial = snapshot.generation() as u32;
            let soa = SOA::new(server, person, serial, 7200, 1800, 86400, NEGATIVE_TTL);
            message.authorities.push(Record::from_rdata(zone, NEGATIVE_TTL, RData::SOA(soa)));
        }
        message
    }

    pub(super) fn fail(&self) -> Message {
        let mut message = self.response(ResponseCode::ServFail);
        self.explain(&mut message, ExtendedError::NoReachableAuthority);
        message
    }

    /// What a resolver has said, `age` seconds ago.
    pub(super) fn repeat(&self, said: &Message, age: u32) -> Message {
        let mut message = self.response(said.metadata.response_code);
        message.metadata.authoritative = said.metadata.authoritative && age == 0;
        message.metadata.truncation = said.metadata.truncation;
        message.metadata.recursion_available = said.metadata.recursion_available;
        message.metadata.authentic_data = said.metadata.authentic_data;
        message.answers.clone_from(&said.answers);
        message.authorities.clone_from(&said.authorities);
        message.additionals.clone_from(&said.additionals);
        let name = &self.message.queries[0].name;
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(age);
            // As this client has written it.
            if record.name == *name {
                record.name.clone_from(name);
            }
        }
        if let Some(other) = &self.other {
            let alias = RData::CNAME(CNAME(other.clone()));
            message.answers.insert(0, Record::from_rdata(name.clone(), TTL, alias));
        }
        message
    }

    /// What a resolver said once, past its time; `ttl` in seconds (RFC 8767, 4).
    pub(super) fn repeat_stale(&self, said: &Message, ttl: u32) -> Message {
        let mut message = self.repeat(said, 0);
        message.metadata.authoritative = false;
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = ttl;
        }
        let error = match said.metadata.response_code {
            ResponseCode::NXDomain => ExtendedError::StaleNxdomainAnswer,
            _ => ExtendedError::StaleAnswer,
        };
        self.explain(&mut message, error);
        message
    }

    /// An answer as bytes for UDP: what does not fit leaves the client to ask again over TCP.
    pub(super) fn encode_udp(&self, message: Message) -> Option<Vec<u8>> {
        let limit = self.message.edns.as_ref().map_or(PLAIN_PAYLOAD, Edns::max_payload);
        encode(message, limit.clamp(PLAIN_PAYLOAD, MAX_PAYLOAD).into())
    }

    /// An answer as bytes for TCP.
    pub(super) fn encode_tcp(&self, message: Message) -> Option<Vec<u8>> {
        encode(message, u16::MAX.into())
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.message.metadata.id, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.recursion_desired = self.message.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.message.metadata.checking_disabled;
        message.queries.clone_from(&self.message.queries);
        message.edns =
            self.message.edns.as_ref().map(|edns| answer_edns(edns.flags().dnssec_ok, MAX_PAYLOAD));
        message
    }

    fn record(&self, record: orlop_model::Record) -> Option<Record> {
        let owner = match record.owner {
            Some(owner) => fqdn(&owner)?,
            None => self.message.queries[0].name.clone(),
        };
        let data = match record.data {
            RecordData::Address(IpAddr::V4(ip)) => RData::A(ip.into()),
            RecordData::Address(IpAddr::V6(ip)) => RData::AAAA(ip.into()),
            RecordData::Service { port, target } => RData::SRV(SRV::new(0, WEIGHT, port, fqdn(&target)?)),
            RecordData::Alias(target) => RData::CNAME(CNAME(fqdn(&target)?)),
            RecordData::Pointer(target) => RData::PTR(PTR(fqdn(&target)?)),
        };
        Some(Record::from_rdata(owner, TTL, data))
    }

    fn explain(&self, message: &mut Message, error: ExtendedError) {
        if let Some(edns) = &mut message.edns {
            let code = (error as u16).to_be_bytes().to_vec();
            edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, code));
        }
    }
}

/// What a resolver says.
pub(super) enum Said {
    /// And in how many bytes.
    Message(Arc<Message>, usize),
    /// Something that is not understood here, but perhaps by the client.
    Bytes(Vec<u8>),
}

impl Said {
    /// Whether `answer` is one to `question`, a standard query, whatever else it says.
    pub(super) fn answers(answer: &[u8], question: &[u8]) -> bool {
        let Some(asked) = question_of(question) else { return false };
        answer.get(..2) == question.get(..2)
            // A response, of the same operation: an UPDATE's would have records that no other message may have.
            && answer.get(2).is_some_and(|flags| flags & 0xf8 == 0x80)
            && answer
                .get(HEADER..)
                .and_then(|rest| rest.get(..asked.len()))
                .is_some_and(|echoed| echoed.eq_ignore_ascii_case(asked))
    }

    pub(super) fn read(bytes: Vec<u8>) -> Self {
        match Message::from_vec(&bytes) {
            Ok(message) => Self::Message(Arc::new(message), bytes.len()),
            Err(_) => Self::Bytes(bytes),
        }
    }

    /// Whether the resolver can't say (RFC 8767, 5).
    pub(super) fn is_failure(&self) -> bool {
        let code = match self {
            Self::Message(message, _) => message.metadata.response_code,
            Self::Bytes(bytes) => code_of(bytes),
        };
        !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
    }
}

/// The response code in a message's header.
pub(super) fn code_of(message: &[u8]) -> ResponseCode {
    ResponseCode::from(0, message.get(3).map_or(0, |flags| flags & 0xf))
}

/// SERVFAIL to a message that is not understood here.
pub(super) fn failure(message: &[u8], id: [u8; 2]) -> Vec<u8> {
    let operation = OpCode::from_u8(message.get(2).map_or(0, |flags| flags >> 3 & 0xf));
    let answer = Message::error_msg(u16::from_be_bytes(id), operation, ResponseCode::ServFail);
    answer.to_vec().unwrap_or_default()
}

/// The first question of a message whose names are not compressed, as a query's aren't.
fn question_of(message: &[u8]) -> Option<&[u8]> {
    let rest = message.get(HEADER..)?;
    let mut length = 0;
    while let label @ 1..64 = usize::from(*rest.get(length)?) {
        length += 1 + label;
    }
    rest.get(..length + 1 + 4)
}

fn answer_edns(dnssec_ok: bool, payload: u16) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
    edns
}

fn fqdn(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// What is only there to save a question goes first, then everything.
fn encode(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let fits = |message: &Message| message.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    fits(&message)
        .or_else(|| {
            message.additionals.clear();
            fits(&message)
        })
        .or_else(|| message.truncate().to_vec().ok())
}

/// For a fuzz target: what a client sent is answered, once with what a resolver has `said`.
#[cfg(fuzzing)]
pub fn exercise(sent: &[u8], mut said: Vec<u8>) {
    let query = match Query::read(sent) {
        Read::Query(query) => query,
        Read::Malformed(answer) => return assert_eq!(answer[..2], sent[..2]),
        Read::Opaque | Read::Nothing => return assert!(failure(sent, [1, 2]).starts_with(&[1, 2])),
    };
    let mut answers = vec![query.fail()];
    if let Some(flags) = said.get_mut(2) {
        // As `Said::answers` wants it.
        *flags = *flags & 0x7 | 0x80;
    }
    if let Said::Message(said, _) = Said::read(said) {
        answers.extend([query.repeat(&said, 7), query.repeat_stale(&said, 7)]);
    }
    for answer in answers {
        let (udp, tcp) = (query.encode_udp(answer.clone()), query.encode_tcp(answer));
        let (udp, tcp) = (udp.expect("a client has an answer"), tcp.expect("a client has an answer"));
        assert!(udp.len() <= MAX_PAYLOAD.into() && tcp.len() <= u16::MAX.into());
        for bytes in [udp, tcp] {
            let answer = Message::from_vec(&bytes).expect("an answer is a message");
            assert_eq!(
                (answer.metadata.id, &answer.queries),
                (query.message.metadata.id, &query.message.queries)
            );
        }
    }
    // The resolver is asked what the client asks, and what it says is known for an answer to that.
    let mut forwarded = query.forwarded(9).expect("a resolver can be asked");
    let Read::Query(again) = Query::read(&forwarded) else { panic!("the resolver is asked something else") };
    assert_eq!(again.question(), query.question());
    let asked = forwarded.clone();
    forwarded[2] |= 0x80;
    assert!(Said::answers(&forwarded, &asked));
    assert!(query.adapt(&mut forwarded));
    assert_eq!(forwarded[..2], sent[..2]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, record_type: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.queries.push(hickory_proto::op::Query::query(Name::from_ascii(name).unwrap(), record_type));
        message.to_vec().unwrap()
    }

    fn read(bytes: &[u8]) -> Query {
        let Read::Query(query) = Query::read(bytes) else { panic!("not a query") };
        *query
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let good = query("web.shop.svc.cluster.local.", RecordType::A);
        fastrand::seed(7);
        for _ in 0..100_000 {
            let mut bytes = good.clone();
            for _ in 0..fastrand::usize(1..6) {
                let index = fastrand::usize(..bytes.len());
                bytes[index] = fastrand::u8(..);
            }
            bytes.truncate(fastrand::usize(..=bytes.len()));
            match Query::read(&bytes) {
                Read::Query(query) => {
                    let answer = Message::from_vec(&query.encode_udp(query.fail()).unwrap()).unwrap();
                    assert_eq!(answer.queries, query.message.queries);
                    let _ = query.name();
                }
                Read::Malformed(answer) => assert_eq!(answer[..2], bytes[..2]),
                Read::Opaque | Read::Nothing => {}
            }
        }
    }

    #[test]
    fn the_names_case_is_kept() {
        let query = read(&query("WeB.sHop.svc.cluster.local.", RecordType::A));
        assert_eq!(query.name(), "web.shop.svc.cluster.local");
        let address = RecordData::Address("10.0.0.1".parse().unwrap());
        let answer = query.answer(vec![orlop_model::Record { owner: None, data: address }], Vec::new());
        let answer = Message::from_vec(&query.encode_udp(answer).unwrap()).unwrap();
        assert_eq!(answer.queries[0].name.to_ascii(), "WeB.sHop.svc.cluster.local.");
        assert_eq!(answer.answers[0].name.to_ascii(), "WeB.sHop.svc.cluster.local.");
    }

    #[test]
    fn an_answer_is_a_response_of_the_same_operation() {
        let question = query("web.", RecordType::A);
        let with = |flags: u8| {
            let mut answer = question.clone();
            answer[2] = flags;
            Said::answers(&answer, &question)
        };
        assert!(with(0x81) && with(0x80) && with(0x87));
        assert!(!with(0x01), "a query");
        assert!(!with(0x80 | 5 << 3), "an UPDATE's, which could not be repeated as a query's");
    }

    #[test]
    fn what_does_not_fit_is_truncated() {
        let query = read(&query("web.", RecordType::A));
        let records = (0..100).map(|n| orlop_model::Record {
            owner: None,
            data: RecordData::Address(std::net::Ipv4Addr::from_bits(n).into()),
        });
        let answer = query.answer(records.collect(), Vec::new());
        let bytes = query.encode_udp(answer.clone()).unwrap();
        let cut = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= 512 && cut.metadata.truncation && cut.answers.is_empty());
        let whole = Message::from_vec(&query.encode_tcp(answer).unwrap()).unwrap();
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 100);
    }

    #[test]
    fn other_operations_and_classes_are_not_ours() {
        let mut notify = query("web.", RecordType::SOA);
        notify[2] = 0x20;
        assert!(matches!(Query::read(&notify), Read::Opaque));
        assert!(matches!(Query::read(&query("web.", RecordType::AXFR)), Read::Opaque));
        let mut answer = query("web.", RecordType::A);
        answer[2] |= 0x80;
        assert!(matches!(Query::read(&answer), Read::Nothing));
        assert!(matches!(Query::read(b"short"), Read::Nothing));
    }
}
