//! The name of a server in the beginning of a client's TLS (RFC 8446, section 4.1.2; RFC 6066, section 3).
//!
//! Policies and routes go by it, so what the server may read otherwise is no name: whatever could be TLS for some server
//! and is not understood to its last byte is [`Seen::Unknown`].

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use orlop_model::{Reason, world::stream::Sni};

use crate::refusal::Refusal;

/// With all that clients put in it, a hello is some 2 KiB. It is looked at again with each part of it that comes.
const MAX_HELLO: usize = 16 << 10;
/// RFC 8446, section 5.1.
const MAX_RECORD: usize = 1 << 14;
const MAX_NAME: usize = 253;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// That of heartbeats (RFC 6520), which is the last of those that mean anything.
const LAST_RECORD: u8 = 24;
const CLIENT_HELLO: u8 = 1;

const SERVER_NAME: u16 = 0;
const EARLY_DATA: u16 = 42;
const SUPPORTED_VERSIONS: u16 = 43;
/// RFC 9849: the name that is meant is another, and encrypted.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// What of a name there is in the first bytes of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nobody has looked, or nobody can tell.
    #[default]
    Unknown,
    /// It is no TLS.
    Plain,
    /// TLS, with this name in lower case if there is one.
    Tls(Option<String>),
}

impl Seen {
    /// As rules and policies ask about it.
    pub(crate) fn sni(&self) -> Sni<'_> {
        match self {
            Self::Unknown => Sni::Unknown,
            Self::Plain | Self::Tls(None) => Sni::Absent,
            Self::Tls(Some(name)) => Sni::Name(name),
        }
    }
}

/// What is known of a hello besides its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hello {
    /// With the heads of its records.
    pub(crate) length: usize,
    /// Whether its server may ask for another: in TLS 1.3.
    may_be_retried: bool,
}

/// Reads the first bytes of a connection; `None` where they are too few.
pub(crate) fn read(bytes: &[u8]) -> Option<(Seen, Hello)> {
    let unknown = Some((Seen::Unknown, Hello::default()));
    let plain = Some((Seen::Plain, Hello::default()));
    let first = *bytes.first()?;
    if first != HANDSHAKE {
        let could_be_tls = (CHANGE_CIPHER_SPEC..=LAST_RECORD).contains(&first) || first >= 0x80;
        if could_be_tls {
            return unknown;
        }
        // SSL 2 with padding, and what asks for TLS in PostgreSQL's way.
        return match bytes {
            // In SSL 2 that bit marks what it never had.
            [0x40..=0x7f, ..] => plain,
            [_, _, _, CLIENT_HELLO, ..] | [0, 0, 0, 8, ..] => unknown,
            [_, _, _, _, ..] => plain,
            _ => None,
        };
    }
    match message(bytes) {
        Parsed::More if bytes.len() < MAX_HELLO => None,
        Parsed::More | Parsed::Not => unknown,
        Parsed::Is((message, length)) => match hello(&message) {
            Some((name, may_be_retried)) => Some((Seen::Tls(name), Hello { length, may_be_retried })),
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

/// The name in a hello, if there is one, and whether it offers TLS 1.3; `None` where it is not understood.
fn hello(message: &[u8]) -> Option<(Option<String>, bool)> {
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
        return Some((None, false));
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
    Some((found, seen.contains(&SUPPORTED_VERSIONS)))
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

/// Looks at what a client says after its hello: asked by its server it says another (RFC 8446, section 4.1.4), by which
/// some servers go, and which must name the same one.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// What was seen; `None` once nothing can follow that counts.
    first: Option<Seen>,
    /// Of the hello itself.
    hello: Hello,
    /// Of that, what is still to pass.
    skip: usize,
    held: BytesMut,
}

impl Watch {
    /// After this hello, which is still to pass. Where no name is known there is none to keep to.
    pub(crate) fn after(seen: &Seen, hello: Hello) -> Self {
        let first = Some(seen.clone()).filter(|seen| matches!(seen, Seen::Tls(_)));
        Self { first, hello, skip: hello.length, held: BytesMut::new() }
    }

    /// What of all that came so far can pass now.
    pub(crate) fn pass(&mut self, bytes: Bytes) -> Result<Bytes, Refusal> {
        let Some(first) = &self.first else { return Ok(bytes) };
        if self.skip >= bytes.len() {
            self.skip -= bytes.len();
            return Ok(bytes);
        }
        self.held.extend_from_slice(&bytes);
        let mut at = self.skip;
        let ended = loop {
            let ahead = &self.held[at..];
            let [kind, _, _, high, low, content, ..] = *ahead else { break false };
            let length = usize::from(u16::from_be_bytes([high, low]));
            match (kind, content) {
                // It may come before a second hello, for the sake of what is between; before TLS 1.3 all that follows
                // is encrypted.
                (CHANGE_CIPHER_SPEC, 1) if length == 1 && self.hello.may_be_retried => at += 6,
                (CHANGE_CIPHER_SPEC, 1) if length == 1 => break true,
                (ALERT, _) if length == 2 && ahead.len() < 7 => break false,
                (ALERT, _) if length == 2 => at += 7,
                (HANDSHAKE, CLIENT_HELLO) if length > 0 => match read(ahead) {
                    None => break false,
                    Some((seen, hello)) if seen == *first => at += hello.length,
                    Some(_) => return Err(odd("a second hello names another server, or nobody can tell")),
                },
                // The answer to a server's hello.
                (HANDSHAKE, _) if length > 0 => break true,
                (APPLICATION_DATA, _) => break true,
                _ => return Err(odd("what follows the hello is no TLS")),
            }
        };
        if ended {
            self.first = None;
            self.skip = 0;
            return Ok(std::mem::take(&mut self.held).freeze());
        }
        self.skip = 0;
        Ok(self.held.split_to(at).freeze())
    }
}

fn odd(detail: &str) -> Refusal {
    Refusal::new(Reason::PolicyDenied, detail)
}

/// For fuzzing: whom these first bytes name, as policies and routes see it; the outer `None` where nobody can tell, or not
/// yet. What goes on to a server is what came, in its order.
#[cfg(fuzzing)]
pub fn exercise(bytes: &[u8]) -> Option<Option<String>> {
    let whole = read(bytes);
    let mut watch = Watch::default();
    for length in 0..bytes.len() {
        if let Some((seen, hello)) = read(&bytes[..length]) {
            // Whatever comes later, what was seen stays.
            assert_eq!(whole, Some((seen, hello)));
            break;
        }
    }
    if let Some((seen, hello)) = &whole {
        watch = Watch::after(seen, *hello);
    }
    let mut passed = Vec::new();
    for piece in bytes.chunks(7) {
        let Ok(piece) = watch.pass(Bytes::copy_from_slice(piece)) else { break };
        passed.extend_from_slice(&piece);
    }
    assert!(bytes.starts_with(&passed));
    match whole?.0 {
        Seen::Unknown => None,
        Seen::Plain => Some(None),
        Seen::Tls(name) => Some(name),
    }
}

#[cfg(test)]
mod tests;
