//! What follows a client's hello: if its server asks for another (RFC 8446, section 4.1.4), by which some servers go, that
//! must name the same one.

use bytes::{Bytes, BytesMut};
use orlop_model::Reason;
use tokio::sync::oneshot;

use super::{CLIENT_HELLO, HANDSHAKE, Seen, read};
use crate::refusal::Refusal;

/// So much of a server's answer is looked at. What counts is at its beginning, but for alerts.
const MAX_ANSWER: usize = 1 << 10;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const SERVER_HELLO: u8 = 2;
/// Up to the end of its random value.
const HELLO_HEAD: usize = 38;
/// A server's random value that asks for another hello (RFC 8446, section 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// Looks at one direction of a connection.
#[derive(Debug, Default)]
pub(crate) enum Watch {
    /// Nothing that comes counts, or no more.
    #[default]
    Nothing,
    Client(Client),
    Server(Server),
}

/// What a client says.
#[derive(Debug)]
pub(crate) struct Client {
    first: Seen,
    /// Of the hello, what is still to pass.
    skip: usize,
    answer: oneshot::Receiver<Answer>,
    /// Whether the server has asked for another.
    is_asked: bool,
    held: BytesMut,
}

/// What its server answers.
#[derive(Debug)]
pub(crate) struct Server {
    tell: Option<oneshot::Sender<Answer>>,
    begun: BytesMut,
}

/// What a server makes of a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It takes it.
    Hello,
    /// It wants another.
    Retry,
    /// It does not speak TLS, or not so that it could be understood.
    Odd,
}

impl Watch {
    /// Of the client, whose first bytes are still to pass, and of its server. Where no name is known there is none to keep
    /// to.
    pub(crate) fn both(first: &Seen, length: usize) -> (Self, Self) {
        if *first == Seen::Unknown {
            return (Self::Nothing, Self::Nothing);
        }
        let (tell, answer) = oneshot::channel();
        let (first, held) = (first.clone(), BytesMut::new());
        let client = Client { first, skip: length, answer, is_asked: false, held };
        (Self::Client(client), Self::Server(Server { tell: Some(tell), begun: BytesMut::new() }))
    }

    /// What can pass next of what has come; perhaps nothing, until more does. What a client says after its hello waits for
    /// its server's answer.
    pub(crate) async fn pass(&mut self, rest: &mut Bytes) -> Result<Bytes, Refusal> {
        match self {
            Self::Nothing => Ok(std::mem::take(rest)),
            Self::Server(server) => {
                server.look(rest);
                Ok(std::mem::take(rest))
            }
            Self::Client(client) => {
                let (passed, ended) = client.pass(rest).await?;
                if ended {
                    *self = Self::Nothing;
                }
                Ok(passed)
            }
        }
    }
}

impl Client {
    /// Also whether nothing can follow that counts.
    async fn pass(&mut self, rest: &mut Bytes) -> Result<(Bytes, bool), Refusal> {
        if self.skip > 0 {
            let hello = rest.split_to(self.skip.min(rest.len()));
            self.skip -= hello.len();
            return Ok((hello, false));
        }
        if !self.is_asked {
            match (&mut self.answer).await {
                Ok(Answer::Hello) => return Ok((std::mem::take(rest), true)),
                Ok(Answer::Retry) => self.is_asked = true,
                Ok(Answer::Odd) | Err(_) => return Err(odd("the server has answered the hello with no TLS")),
            }
        }
        self.held.extend_from_slice(&std::mem::take(rest));
        let (length, ended) = self.second()?;
        let passed = if ended { std::mem::take(&mut self.held) } else { self.held.split_to(length) };
        Ok((passed.freeze(), ended))
    }

    /// How much of what is held can pass, and whether the second hello is there.
    fn second(&self) -> Result<(usize, bool), Refusal> {
        let mut at = 0;
        loop {
            let ahead = &self.held[at..];
            let [kind, _, _, high, low, content, ..] = *ahead else { return Ok((at, false)) };
            let length = usize::from(u16::from_be_bytes([high, low]));
            match (kind, content) {
                // It may come before, for the sake of what is between.
                (CHANGE_CIPHER_SPEC, 1) if length == 1 => at += 6,
                (ALERT, _) if length == 2 && ahead.len() < 7 => return Ok((at, false)),
                (ALERT, _) if length == 2 => at += 7,
                (HANDSHAKE, CLIENT_HELLO) if length > 0 => match read(ahead) {
                    None => return Ok((at, false)),
                    Some((seen, _)) if seen == self.first => return Ok((at, true)),
                    Some(_) => return Err(odd("a second hello names another server, or nobody can tell")),
                },
                _ => return Err(odd("what follows the hello is no other one, though the server wants it")),
            }
        }
    }
}

impl Server {
    fn look(&mut self, bytes: &[u8]) {
        if self.tell.is_none() {
            return;
        }
        let room = MAX_ANSWER - self.begun.len();
        self.begun.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let undecided = (self.begun.len() == MAX_ANSWER).then_some(Answer::Odd);
        if let Some(answer) = answer(&self.begun).or(undecided)
            && let Some(tell) = self.tell.take()
        {
            // The client may be gone.
            let _ = tell.send(answer);
            self.begun = BytesMut::new();
        }
    }
}

/// What a server's first bytes say; `None` where they are too few.
fn answer(bytes: &[u8]) -> Option<Answer> {
    let (mut message, mut rest) = (Vec::new(), bytes);
    loop {
        let (kind, version) = (*rest.first()?, rest.get(1));
        if !matches!(kind, ALERT | HANDSHAKE) || version.is_some_and(|version| *version != 3) {
            return Some(Answer::Odd);
        }
        let length = usize::from(u16::from_be_bytes([*rest.get(3)?, *rest.get(4)?]));
        let content = &rest[5..];
        let content = &content[..content.len().min(length)];
        if kind == HANDSHAKE {
            message.extend_from_slice(content);
        }
        // An alert may be a warning.
        let fits = if kind == ALERT { length == 2 && message.is_empty() } else { length > 0 };
        if !fits || message.first().is_some_and(|kind| *kind != SERVER_HELLO) {
            return Some(Answer::Odd);
        }
        if let Some(head) = message.get(..HELLO_HEAD) {
            return Some(if head.ends_with(&RETRY) { Answer::Retry } else { Answer::Hello });
        }
        rest = rest.get(5 + length..)?;
    }
}

fn odd(detail: &str) -> Refusal {
    Refusal::new(Reason::PolicyDenied, detail)
}

/// For fuzzing: what passes is what came, also of a client that is asked for another hello.
#[cfg(fuzzing)]
pub(super) fn exercise(first: &Seen, length: usize, said: &[u8]) {
    use std::task::{Context, Poll, Waker};

    let retry = [&[HANDSHAKE, 3, 3, 0, 44, SERVER_HELLO, 0, 0, 40, 3, 3][..], &RETRY].concat();
    let (mut client, mut server) = Watch::both(first, length);
    // The server's part with the client's own bytes, too: anything may come.
    let (_kept, mut other) = Watch::both(first, length);
    for (watch, bytes) in [(&mut other, said), (&mut server, &retry), (&mut client, said)] {
        let mut passed = Vec::new();
        'all: for piece in bytes.chunks(7) {
            let mut rest = Bytes::copy_from_slice(piece);
            while !rest.is_empty() {
                let next =
                    std::pin::pin!(watch.pass(&mut rest)).poll(&mut Context::from_waker(Waker::noop()));
                let Poll::Ready(Ok(next)) = next else { break 'all };
                passed.extend_from_slice(&next);
            }
        }
        assert!(bytes.starts_with(&passed));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    const CCS: [u8; 6] = [CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1];
    const WARNING: [u8; 7] = [ALERT, 3, 3, 0, 2, 1, 112];
    const DATA: [u8; 6] = [23, 3, 3, 0, 1, 9];

    fn record(content: &[u8]) -> Vec<u8> {
        [&[HANDSHAKE, 3, 3, 0, content.len() as u8][..], content].concat()
    }

    fn hello(name: &str) -> Vec<u8> {
        let length = name.len() as u8;
        let name = [&[0, 0, 0, length + 5, 0, length + 3, 0, 0, length][..], name.as_bytes()].concat();
        let fixed = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0, 0, name.len() as u8]].concat();
        let body = [fixed, name].concat();
        record(&[&[CLIENT_HELLO, 0, 0, body.len() as u8][..], &body].concat())
    }

    fn server_hello(random: [u8; 32]) -> Vec<u8> {
        record(&[&[SERVER_HELLO, 0, 0, 40, 3, 3][..], &random, &[0; 6]].concat())
    }

    /// What of all this passes in such steps; `Err` where it is refused.
    fn passed(watch: &mut Watch, said: &[u8], step: usize) -> Result<Vec<u8>, ()> {
        let mut out = Vec::new();
        for piece in said.chunks(step) {
            let mut rest = Bytes::copy_from_slice(piece);
            while !rest.is_empty() {
                let passing = pin!(watch.pass(&mut rest)).poll(&mut Context::from_waker(Waker::noop()));
                let Poll::Ready(next) = passing else { return Ok(out) };
                out.extend_from_slice(&next.map_err(drop)?);
            }
        }
        Ok(out)
    }

    /// What of a client's words passes once its server has answered this.
    fn after(answer: &[u8], said: &[u8], step: usize) -> Result<Vec<u8>, ()> {
        let first = hello("a");
        let (seen, length) = read(&first).unwrap();
        let (mut client, mut server) = Watch::both(&seen, length);
        assert_eq!(passed(&mut client, &first, step), Ok(first.clone()));
        assert_eq!(passed(&mut server, answer, step), Ok(answer.to_vec()));
        passed(&mut client, said, step)
    }

    #[test]
    fn a_second_hello_that_is_asked_for_must_name_the_same_server() {
        let retry = server_hello(RETRY);
        for step in [1, 7, 1000] {
            for between in [&[][..], &CCS, &WARNING] {
                let said = |second: &[u8]| [between, second, &DATA, &hello("b")].concat();
                let same = said(&hello("a"));
                assert_eq!(after(&retry, &same, step), Ok(same));
                for second in [hello("b"), record(&[CLIENT_HELLO, 0, 0, 1, 9]), record(&[]), DATA.to_vec()] {
                    assert_eq!(after(&retry, &said(&second), step), Err(()), "{between:?} {second:?}");
                }
            }
        }
    }

    #[test]
    fn where_none_is_asked_for_what_is_encrypted_is_not_taken_for_one() {
        let taken = [&WARNING[..], &server_hello([7; 32]), &DATA].concat();
        // As a client of TLS 1.2 ends a handshake that it resumes.
        let said = [&CCS[..], &[HANDSHAKE, 3, 3, 0, 40, CLIENT_HELLO, 9, 9, 9], &[9; 36]].concat();
        for step in [1, 7, 1000] {
            assert_eq!(after(&taken, &said, step), Ok(said.clone()));
        }
    }

    #[test]
    fn nothing_follows_a_hello_before_its_answer_or_after_one_that_is_no_tls() {
        for undecided in [&[][..], &WARNING, &server_hello(RETRY)[..40]] {
            assert_eq!(after(undecided, &hello("b"), 7), Ok(Vec::new()), "{undecided:?}");
        }
        let endless = WARNING.repeat(200);
        for odd in [&b"220 mail\r\n"[..], &record(&[0, 0, 0, 0]), &record(&[]), &DATA, &endless] {
            for step in [1, 1000] {
                assert_eq!(after(odd, b"STARTTLS", step), Err(()), "{odd:?}");
            }
        }
    }

    #[test]
    fn where_no_name_is_known_nothing_is_held() {
        let (mut client, mut server) = Watch::both(&Seen::Unknown, 0);
        assert_eq!(passed(&mut client, b"\x16\x03", 1), Ok(b"\x16\x03".to_vec()));
        assert_eq!(passed(&mut server, b"\x16\x03", 1), Ok(b"\x16\x03".to_vec()));
    }
}
