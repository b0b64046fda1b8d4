use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use tokio::{
    net::UdpSocket,
    task::spawn_local,
    time::{sleep, timeout},
};

use super::{
    Source, answer,
    cache::{Cache, Key, Memory},
    count,
    message::{Query, Read, Said, code_of, failure},
    upstream,
};
use crate::{
    pod::Pod,
    shared::{LiveGuard, Phase, Shared},
    socket,
    worker::Worker,
};

/// The largest query that is taken: queries are short.
const QUERY: usize = 4096;
/// Between two attempts to read from a socket that can't be read.
const PAUSE: Duration = Duration::from_millis(50);
/// What an answer from memory that has expired may be remembered for, in seconds (RFC 8767, 4).
const STALE_TTL: u32 = 30;

/// Answers a pod's queries over UDP.
struct Server {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    socket: UdpSocket,
    cache: RefCell<Cache>,
    /// The questions under way, and who waits for the answer.
    waiting: RefCell<HashMap<Key, Vec<(Query, SocketAddr)>>>,
    /// Questions under way.
    questions: Cell<usize>,
    /// For a query whose record the kernel has dropped for newer ones.
    last_resolver: Cell<Option<SocketAddr>>,
}

/// Answers until the pod is closed or another agent answers.
pub(crate) async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, socket: std::net::UdpSocket) {
    let socket = match UdpSocket::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(pod = %pod.name(), %error, "cannot answer DNS"),
    };
    let shared = Arc::clone(&worker.shared);
    let server = Rc::new(Server {
        cache: RefCell::new(Cache::new(shared.config.dns.cache_size)),
        waiting: RefCell::default(),
        questions: Cell::new(0),
        last_resolver: Cell::new(None),
        shared,
        pod: Arc::clone(&pod),
        socket,
    });
    let mut phase = worker.shared.phase.subscribe();
    // As with what listens: one that leaves before it has served may have the socket of an agent that serves on.
    let Ok(Phase::Serving) = phase.wait_for(|phase| !matches!(phase, Phase::Waiting)).await.as_deref() else {
        return;
    };
    let mut ended = pin!(async {
        tokio::select! {
            () = pod.closed() => {}
            // A proxy that only drains answers to the end: what still runs in the pod wants names.
            _ = phase.wait_for(|phase| matches!(phase, Phase::HandingOver(_))) => {}
        }
    });
    let mut buffer = vec![0; QUERY];
    loop {
        let received = tokio::select! {
            biased;
            () = &mut ended => break,
            received = server.socket.recv_from(&mut buffer) => received,
        };
        match received {
            Ok((length, client)) => server.take(&buffer[..length], client),
            Err(error) => {
                tracing::warn!(pod = %pod.name(), %error, "cannot read DNS queries; trying again");
                sleep(PAUSE).await;
            }
        }
    }
}

impl Server {
    fn take(self: &Rc<Self>, bytes: &[u8], client: SocketAddr) {
        match Query::read(bytes) {
            Read::Query(query) => self.answer(*query, client),
            Read::Opaque => self.pass_on(bytes.to_vec(), client),
            Read::Malformed(answer) => self.send(&answer, client, Source::Failure, ResponseCode::FormErr),
            Read::Nothing => {}
        }
    }

    fn answer(self: &Rc<Self>, mut query: Query, client: SocketAddr) {
        let namespace = &self.pod.name().namespace;
        if let Some(message) = answer(&self.shared.snapshot.load(), namespace, &mut query) {
            return self.reply(&query, client, Source::Cluster, message);
        }
        let Some(resolver) = self.resolver(client) else {
            return self.reply(&query, client, Source::Failure, query.fail());
        };
        let key = (resolver, query.question());
        let stale = match self.cache.borrow_mut().get(&key, Instant::now()) {
            Memory::Fresh(said, age) => {
                let message = query.repeat(&said, age.as_secs() as u32);
                return self.reply(&query, client, Source::Cache, message);
            }
            Memory::Resting(said) => {
                let message = query.repeat_stale(&said, STALE_TTL);
                return self.reply(&query, client, Source::Stale, message);
            }
            Memory::Stale(said) => Some(said),
            Memory::Nothing => None,
        };
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&key) {
            if waiting.len() < self.shared.config.dns.max_questions {
                waiting.push((query, client));
            }
            return;
        }
        let Some(under_way) = UnderWay::begin(self) else {
            return self.reply(&query, client, Source::Failure, query.fail());
        };
        self.waiting.borrow_mut().insert(key.clone(), vec![(query.clone(), client)]);
        spawn_local(async move { under_way.0.ask(&query, key, stale).await });
    }

    /// Asks the resolver, and answers everybody who waits, from memory if that takes too long.
    async fn ask(&self, query: &Query, key: Key, stale: Option<Arc<Message>>) {
        let mut asked = pin!(self.fetch(query, key.0));
        let fetched = match &stale {
            None => asked.await,
            Some(said) => match timeout(self.shared.config.dns.patience, &mut asked).await {
                Ok(fetched) => fetched,
                Err(_) => {
                    self.reply_stale(&key, said);
                    asked.await
                }
            },
        };
        match (fetched, stale) {
            (Some(said), stale) if !said.is_failure() || stale.is_none() => self.pass_back(key, said),
            (_, Some(said)) => {
                self.cache.borrow_mut().rest(&key, Instant::now());
                self.reply_stale(&key, &said);
            }
            (_, None) => {
                for (query, client) in self.waiting(&key) {
                    self.reply(&query, client, Source::Failure, query.fail());
                }
            }
        }
    }

    async fn fetch(&self, query: &Query, resolver: SocketAddr) -> Option<Said> {
        let question = query.forwarded(fastrand::u16(..))?;
        let wanted = |bytes: &[u8]| Said::answers(bytes, &question);
        match upstream::ask(&self.shared, &self.pod, resolver, &question, wanted).await {
            Ok(bytes) => Some(Said::read(bytes)),
            Err(error) => {
                tracing::debug!(pod = %self.pod.name(), %resolver, %error, "no answer from the resolver");
                None
            }
        }
    }

    /// Gives what the resolver said to everybody who waits, and remembers it.
    fn pass_back(&self, key: Key, said: Said) {
        let waiting = self.waiting(&key);
        match said {
            Said::Message(said, bytes) => {
                for (query, client) in waiting {
                    self.reply(&query, client, Source::Upstream, query.repeat(&said, 0));
                }
                self.cache.borrow_mut().put(key, said, bytes, Instant::now());
            }
            Said::Bytes(mut bytes) => {
                for (query, client) in waiting {
                    if query.adapt(&mut bytes) {
                        self.send(&bytes, client, Source::Upstream, code_of(&bytes));
                    } else {
                        self.reply(&query, client, Source::Failure, query.fail());
                    }
                }
            }
        }
    }

    /// Carries a message that is not understood here, and its answer.
    fn pass_on(self: &Rc<Self>, mut bytes: Vec<u8>, client: SocketAddr) {
        let (Some(resolver), Some(under_way)) = (self.resolver(client), UnderWay::begin(self)) else {
            return;
        };
        spawn_local(async move {
            let this = &under_way.0;
            let Some(id) = bytes.first_chunk::<2>().copied() else { return };
            let own = fastrand::u16(..).to_be_bytes();
            bytes[..2].copy_from_slice(&own);
            let wanted = |answer: &[u8]| answer.starts_with(&own);
            match upstream::ask(&this.shared, &this.pod, resolver, &bytes, wanted).await {
                Ok(mut answer) => {
                    answer[..2].copy_from_slice(&id);
                    this.send(&answer, client, Source::Upstream, code_of(&answer));
                }
                Err(_) => {
                    let answer = failure(&bytes, id);
                    this.send(&answer, client, Source::Failure, ResponseCode::ServFail);
                }
            }
        });
    }

    /// Whom to ask: the resolver that the client asked, unless the node's operator has named another.
    fn resolver(&self, client: SocketAddr) -> Option<SocketAddr> {
        if let Some(upstream) = self.shared.config.dns.upstream {
            return Some(upstream);
        }
        let netns = self.pod.netns().cookie();
        let known = self.shared.kernel.resolver(netns, socket::canonical(client)).unwrap_or_else(|error| {
            tracing::warn!(pod = %self.pod.name(), %error, "cannot look up a query's resolver");
            None
        });
        if known.is_some() {
            self.last_resolver.set(known);
        }
        self.last_resolver.get()
    }

    fn waiting(&self, key: &Key) -> Vec<(Query, SocketAddr)> {
        self.waiting.borrow_mut().remove(key).unwrap_or_default()
    }

    fn reply_stale(&self, key: &Key, said: &Message) {
        for (query, client) in self.waiting(key) {
            self.reply(&query, client, Source::Stale, query.repeat_stale(said, STALE_TTL));
        }
    }

    fn reply(&self, query: &Query, client: SocketAddr, source: Source, message: Message) {
        let code = message.metadata.response_code;
        if let Some(bytes) = query.encode_udp(message) {
            self.send(&bytes, client, source, code);
        }
    }

    /// A client whose buffer is full asks again.
    fn send(&self, bytes: &[u8], client: SocketAddr, source: Source, code: ResponseCode) {
        count(&self.shared.metrics, "udp", source, code);
        let _ = self.socket.try_send_to(bytes, client);
    }
}

/// Counts a question as under way until it is dropped.
struct UnderWay(Rc<Server>, #[expect(dead_code, reason = "it counts")] LiveGuard);

impl UnderWay {
    fn begin(server: &Rc<Server>) -> Option<Self> {
        if server.questions.get() >= server.shared.config.dns.max_questions {
            return None;
        }
        server.questions.set(server.questions.get() + 1);
        Some(Self(Rc::clone(server), server.shared.questions.enter_always()))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.questions.set(self.0.questions.get() - 1);
    }
}
