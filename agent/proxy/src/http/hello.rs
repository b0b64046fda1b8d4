//! The name of a server in the beginning of a client's TLS (RFC 8446, section 4.1.2; RFC 6066, section 3).
//!
//! Policies and routes go by it, so what the server may read otherwise is no name: whatever is not understood to its last
//! byte is [`Seen::Unknown`].

mod watch;

use std::net::IpAddr;

use orlop_model::world::stream::Sni;

pub(crate) use self::watch::Watch;

/// With all that clients put in it, a hello is some 2 KiB. It is looked at again with each part of it that comes.
const MAX_HELLO: usize = 16 << 10;
/// RFC 8446, section 5.1.
const MAX_RECORD: usize = 1 << 14;
const MAX_NAME: usize = 253;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

const SERVER_NAME: u16 = 0;
const EARLY_DATA: u16 = 42;
/// RFC 9849: the name that is meant is another, and encrypted.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// What of a name there is in the first bytes of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nobody has looked, or nobody can tell: what is no TLS may become some later, as in STARTTLS.
    #[default]
    Unknown,
    /// TLS, with this name in lower case if there is one.
    Tls(Option<String>),
}

impl Seen {
    /// As rules and policies ask about it.
    pub(crate) fn sni(&self) -> Sni<'_> {
        match self {
            Self::Unknown => Sni::Unknown,
            Self::Tls(None) => Sni::Absent,
            Self::Tls(Some(name)) => Sni::Name(name),
        }
    }
}

/// Reads the first bytes of a connection; `None` where they are too few. Of a hello also how long that is with the heads
/// of its records.
pub(crate) fn read(bytes: &[u8]) -> Option<(Seen, usize)> {
    let unknown = Some((Seen::Unknown, 0));
    if *bytes.first()? != HANDSHAKE {
        return unknown;
    }
    match message(bytes) {
        Parsed::More if bytes.len() < MAX_HELLO => None,
        Parsed::More | Parsed::Not => unknown,
        Parsed::Is((message, length)) => match hello(&message) {
            Some(name) => Some((Seen::Tls(name), length)),
            None => unknown,
        },
    }
}

enum Parsed<T> {
    More,
    Not,
    Is(T),
}

/// The hello of one record or several, without its head, and how many bytes those are. Nothing else may be in them.
fn message(bytes: &[u8]) -> Parsed<(Vec<u8>, usize)> {
    let (mut message, mut at) = (Vec::new(), 0);
    loop {
        let Some(head) = bytes.get(at..at + 5) else { return Parsed::More };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        // An empty record may be read as nothing, or as the end.
        if head[0] != HANDSHAKE || head[1] != 3 || !(1..=MAX_RECORD).contains(&length) {
            return Parsed::Not;
        }
        let Some(fragment) = bytes.get(at + 5..at + 5 + length) else {
            // What has begun otherwise will not be waited for.
            let kind = message.first().or(bytes.get(at + 5)).is_none_or(|kind| *kind == CLIENT_HELLO);
            return if kind { Parsed::More } else { Parsed::Not };
        };
        message.extend_from_slice(fragment);
        at += 5 + length;
        if message[0] != CLIENT_HELLO || message.len() > MAX_HELLO {
            return Parsed::Not;
        }
        if let [_, a, b, c, ..] = message[..] {
            let wanted = u32::from_be_bytes([0, a, b, c]) as usize;
            match message.len() - 4 {
                there if there < wanted => {}
                there if there == wanted => return Parsed::Is((message.split_off(4), at)),
                // Another message is in the same record.
                _ => return Parsed::Not,
            }
        }
    }
}

/// The name in a hello, if there is one; `None` where it is not understood.
fn hello(message: &[u8]) -> Option<Option<String>> {
    let mut rest = Reader(message);
    let [3, _] = *rest.take(2)? else { return None };
    rest.take(32)?;
    let session = rest.sized(1)?;
    let (suites, methods) = (rest.sized(2)?, rest.sized(1)?);
    if session.0.len() > 32 || suites.0.is_empty() || suites.0.len() % 2 != 0 || methods.0.is_empty() {
        return None;
    }
    // Before TLS 1.2 there need be none.
    if rest.0.is_empty() {
        return Some(None);
    }
    let mut extensions = rest.sized(2)?;
    if !rest.0.is_empty() {
        return None;
    }
    let (mut found, mut seen) = (None, Vec::new());
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let body = extensions.sized(2)?;
        // After early data another hello may follow, which nobody would look for.
        if seen.contains(&kind) || matches!(kind, EARLY_DATA | ENCRYPTED_CLIENT_HELLO) || seen.len() > 64 {
            return None;
        }
        seen.push(kind);
        if kind == SERVER_NAME {
            found = Some(server_name(body)?);
        }
    }
    Some(found)
}

/// The only name, which must be a host.
fn server_name(mut body: Reader<'_>) -> Option<String> {
    let mut list = body.sized(2)?;
    let [0] = *list.take(1)? else { return None };
    let name = list.sized(2)?.0;
    let is_fit = body.0.is_empty() && list.0.is_empty() && name.len() <= MAX_NAME;
    let is_label = |label: &[u8]| {
        (1..=63).contains(&label.len())
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_host = is_fit && name.split(|byte| *byte == b'.').all(is_label);
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    // An address is no name: some servers take it for one, and some for nothing.
    Some(name).filter(|name| is_host && name.parse::<IpAddr>().is_err())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// What is preceded by its length, in so many bytes.
    fn sized(&mut self, bytes: usize) -> Option<Self> {
        let length = self.take(bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        self.take(length).map(Self)
    }
}

/// For fuzzing: whom these first bytes name, as policies and routes see it; the outer `None` where nobody can tell, or not
/// yet. What goes on to a server is what came, in its order.
#[cfg(fuzzing)]
pub fn exercise(bytes: &[u8]) -> Option<Option<String>> {
    let whole = read(bytes);
    for length in 0..bytes.len() {
        if let Some(seen) = read(&bytes[..length]) {
            // Whatever comes later, what was seen stays.
            assert_eq!(whole, Some(seen));
            break;
        }
    }
    let (seen, length) = whole?;
    watch::exercise(&seen, length, bytes);
    match seen {
        Seen::Unknown => None,
        Seen::Tls(name) => Some(name),
    }
}

#[cfg(test)]
mod tests;
