//! Where keys are from, and the keys that are in force.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use orlop_model::world::{KeyPlace, KeySource, RemoteKeys};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Keys;
use super::fetch::{Fetcher, Resolve};
use super::keys::KeySet;

/// How long keys that were fetched are good before they are fetched again.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// How long they stay in force while they can't be.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);
/// After a failure; twice as long after each that follows.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// At most.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Whatever tokens name, keys are fetched no more often than this.
const MIN_PAUSE: Duration = Duration::from_secs(10);

/// The keys of all issuers: read once, and those that are elsewhere fetched again and again, in the background.
///
/// One that answers with other keys has them in force from then on, and no others. While it does not answer with keys,
/// what it had stays for an hour and no longer; before it ever has, there are none.
#[derive(Clone, Debug)]
pub struct KeySources(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fetcher: Arc<Fetcher>,
    remote: RwLock<BTreeMap<RemoteKeys, Arc<Remote>>>,
    /// By the place of the text, which is kept there.
    inline: RwLock<HashMap<usize, Inline>>,
    counts: Arc<Counts>,
}

type Inline = (Arc<str>, Result<Arc<KeySet>, String>);

#[derive(Debug, Default)]
struct Counts {
    good: AtomicU64,
    failed: AtomicU64,
}

/// How often keys were fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFetches {
    /// With keys as the answer.
    pub good: u64,
    /// With anything else, or nothing.
    pub failed: u64,
}

#[derive(Debug)]
struct Remote {
    state: watch::Receiver<State>,
    /// Told when a key is missing.
    hurry: Arc<Notify>,
    task: AbortHandle,
}

#[derive(Clone, Debug, Default)]
struct State {
    keys: Option<(Arc<KeySet>, Instant)>,
    /// Of the last attempt.
    error: Option<String>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KeySources {
    /// Hosts are found by `resolve`; servers are believed whose certificates lead to a public root or one of `roots`.
    pub fn new(
        resolve: Resolve,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self(Arc::new(Inner {
            fetcher: Arc::new(Fetcher::new(resolve, roots)?),
            remote: RwLock::default(),
            inline: RwLock::default(),
            counts: Arc::default(),
        })))
    }

    /// From now on these are fetched and no others, never from one of the node's `own` addresses. Must be called within
    /// a runtime.
    pub fn want(&self, wanted: &BTreeSet<RemoteKeys>, own: &[IpAddr]) {
        self.0.fetcher.set_own(own.to_vec());
        let mut remote = self.0.remote.write().unwrap_or_else(PoisonError::into_inner);
        remote.retain(|source, _| wanted.contains(source));
        for source in wanted {
            remote.entry(source.clone()).or_insert_with(|| Arc::new(self.follow(source)));
        }
    }

    /// Until each that is wanted has been fetched, or could not be.
    pub async fn tried(&self) {
        let remote: Vec<_> = self.remote(|all| all.values().cloned().collect());
        for source in remote {
            let mut state = source.state.clone();
            // One that has ended is not wanted any more.
            let _ = state.wait_for(|state| state.keys.is_some() || state.error.is_some()).await;
        }
    }

    /// How often keys were fetched.
    pub fn fetches(&self) -> KeyFetches {
        let Counts { good, failed } = &*self.0.counts;
        KeyFetches { good: good.load(Relaxed), failed: failed.load(Relaxed) }
    }

    fn remote<T>(&self, with: impl FnOnce(&BTreeMap<RemoteKeys, Arc<Remote>>) -> T) -> T {
        with(&self.0.remote.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn follow(&self, source: &RemoteKeys) -> Remote {
        let (sender, state) = watch::channel(State::default());
        let hurry = Arc::new(Notify::new());
        let (fetcher, place) = (Arc::clone(&self.0.fetcher), source.place.clone());
        let fetch = move || {
            let (fetcher, place) = (Arc::clone(&fetcher), place.clone());
            async move { fetcher.keys(&place).await.map_err(|error| error.to_string()) }
        };
        let counts = Arc::clone(&self.0.counts);
        let follower = follow(fetch, source.clone(), sender, Arc::clone(&hurry), counts);
        Remote { state, hurry, task: tokio::spawn(follower).abort_handle() }
    }

    fn inline(&self, text: &Arc<str>) -> Result<Arc<KeySet>, String> {
        let (inline, place) = (&self.0.inline, Arc::as_ptr(text).cast::<u8>().addr());
        let known = inline.read().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        known.map(|(_, read)| read).unwrap_or_else(|| {
            let read = KeySet::read(text.as_bytes()).map(Arc::new);
            let read = read.map_err(|error| unusable(&error.to_string()));
            if let Err(error) = &read {
                tracing::warn!(error, "tokens of an issuer are refused");
            }
            let mut inline = inline.write().unwrap_or_else(PoisonError::into_inner);
            // Those of earlier worlds are nobody's any more.
            inline.retain(|_, (text, _)| Arc::strong_count(text) > 1);
            inline.insert(place, (Arc::clone(text), read.clone()));
            read
        })
    }
}

impl Keys for KeySources {
    fn of(&self, source: &KeySource) -> Result<Arc<KeySet>, String> {
        let source = match source {
            KeySource::Inline(text) => return self.inline(text),
            KeySource::Unusable(why) => return Err(unusable(why)),
            KeySource::Remote(source) => source,
        };
        let state = self.remote(|all| all.get(source).map(|remote| remote.state.borrow().clone()));
        state.unwrap_or_default().now()
    }

    fn unknown(&self, source: &KeySource) {
        if let KeySource::Remote(source) = source {
            self.remote(|all| all.get(source).map(|remote| remote.hurry.notify_one()));
        }
    }
}

impl State {
    /// The keys, as long as they are not too old.
    fn now(self) -> Result<Arc<KeySet>, String> {
        let why = self.error.unwrap_or_else(|| "they have not been fetched yet".to_owned());
        match self.keys {
            Some((keys, since)) if since.elapsed() < MAX_AGE => Ok(keys),
            Some(_) => Err(format!("those that were fetched are too old by now: {why}")),
            None => Err(why),
        }
    }

    fn failed(&mut self, error: String) {
        self.error = Some(error);
        // Too old to be of use to anybody but a reader of memory.
        self.keys.take_if(|(_, since)| since.elapsed() >= MAX_AGE);
    }
}

/// Fetches keys again and again.
async fn follow<F, R>(
    fetch: F,
    source: RemoteKeys,
    state: watch::Sender<State>,
    hurry: Arc<Notify>,
    counts: Arc<Counts>,
) where
    F: Fn() -> R,
    R: Future<Output = Result<KeySet, String>>,
{
    let place = shown(&source);
    let mut retry = FIRST_RETRY;
    loop {
        let fetched = match timeout(source.timeout, fetch()).await {
            Ok(fetched) => fetched,
            Err(_) => Err(format!("no answer within {:?}", source.timeout)),
        };
        let known = state.borrow().clone();
        let pause = match fetched {
            Ok(keys) => {
                counts.good.fetch_add(1, Relaxed);
                if known.keys.is_none() || known.error.is_some() {
                    tracing::info!(place, keys = keys.len(), "fetched the keys of an issuer");
                }
                state.send_replace(State { keys: Some((Arc::new(keys), Instant::now())), error: None });
                retry = FIRST_RETRY;
                REFRESH
            }
            Err(error) => {
                counts.failed.fetch_add(1, Relaxed);
                if known.error.as_ref() != Some(&error) {
                    tracing::warn!(place, error, "can't fetch the keys of an issuer");
                }
                drop(known);
                state.send_modify(|state| state.failed(error));
                twice(&mut retry)
            }
        };
        // At random, since many ask the same server.
        let pause = pause.mul_f64(0.75 + fastrand::f64() / 4.0);
        let missed = async {
            sleep(MIN_PAUSE).await;
            hurry.notified().await;
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = missed => {}
        }
    }
}

fn twice(retry: &mut Duration) -> Duration {
    let pause = *retry;
    *retry = (2 * pause).min(LAST_RETRY);
    pause
}

fn unusable(why: &str) -> String {
    format!("jwks can't be used: {why}")
}

fn shown(source: &RemoteKeys) -> &str {
    match &source.place {
        KeyPlace::Uri(text) | KeyPlace::Issuer(text) => text,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::advance;

    use super::*;

    /// What is followed here answers as it is told to.
    struct Followed {
        state: watch::Receiver<State>,
        hurry: Arc<Notify>,
        counts: Arc<Counts>,
        answer: Arc<Mutex<Result<&'static str, &'static str>>>,
    }

    impl Followed {
        fn start() -> Self {
            let (sender, state) = watch::channel(State::default());
            let (hurry, counts) = (Arc::new(Notify::new()), Arc::<Counts>::default());
            let answer = Arc::new(Mutex::new(Err("down")));
            let source =
                RemoteKeys { place: KeyPlace::Uri("http://a/".into()), timeout: Duration::from_secs(5) };
            let told = Arc::clone(&answer);
            let fetch = move || {
                let answer = *told.lock().unwrap();
                async move {
                    match answer {
                        Ok("never") => std::future::pending().await,
                        Ok(text) => KeySet::read(text.as_bytes()).map_err(|error| error.to_string()),
                        Err(error) => Err(error.to_owned()),
                    }
                }
            };
            tokio::spawn(follow(fetch, source, sender, Arc::clone(&hurry), Arc::clone(&counts)));
            Self { state, hurry, counts, answer }
        }

        fn answer(&self, answer: Result<&'static str, &'static str>) {
            *self.answer.lock().unwrap() = answer;
        }

        /// In steps, so that whatever is due happens.
        async fn pass(&self, seconds: u64) {
            for _ in 0..seconds * 4 {
                advance(Duration::from_millis(250)).await;
                tokio::task::yield_now().await;
            }
        }

        fn now(&self) -> Result<usize, String> {
            self.state.borrow().clone().now().map(|keys| keys.len())
        }

        fn fetches(&self) -> u64 {
            self.counts.good.load(Relaxed) + self.counts.failed.load(Relaxed)
        }
    }

    const NONE: &str = r#"{"keys": []}"#;
    const ONE: &str =
        r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    #[tokio::test(start_paused = true)]
    async fn keys_stay_for_an_hour_after_they_were_fetched_last_and_no_longer() {
        let followed = Followed::start();
        assert_eq!(followed.now(), Err("they have not been fetched yet".into()));
        followed.pass(1).await;
        assert_eq!(followed.now(), Err("down".into()));
        followed.answer(Ok(ONE));
        followed.pass(2).await;
        assert_eq!(followed.now(), Ok(1));
        followed.answer(Err("gone"));
        followed.pass(50 * 60).await;
        assert_eq!(followed.now(), Ok(1));
        followed.pass(10 * 60).await;
        assert!(followed.now().unwrap_err().contains("gone"), "{:?}", followed.now());
        followed.pass(60).await;
        // Nor are they in memory.
        assert!(followed.state.borrow().keys.is_none());
        followed.answer(Ok(ONE));
        followed.pass(60).await;
        assert_eq!(followed.now(), Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_with_other_keys_or_none_takes_their_place_and_what_is_no_answer_does_not() {
        let followed = Followed::start();
        followed.answer(Ok(ONE));
        followed.pass(2).await;
        assert_eq!(followed.now(), Ok(1));
        followed.answer(Ok("<html>"));
        followed.pass(6 * 60).await;
        assert_eq!(followed.now(), Ok(1));
        assert!(followed.state.borrow().error.as_deref().unwrap().contains("is no JSON"));
        followed.answer(Ok("never"));
        followed.pass(2 * 60).await;
        assert!(followed.state.borrow().error.as_deref().unwrap().contains("no answer within 5s"));
        followed.answer(Ok(NONE));
        followed.pass(2 * 60).await;
        assert_eq!(followed.now(), Ok(0));
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_tokens_name_keys_are_fetched_no_more_often_than_that() {
        let followed = Followed::start();
        followed.answer(Ok(ONE));
        followed.pass(20).await;
        let before = followed.fetches();
        // Once for many that are missing, and at once, as the last time is long ago.
        for _ in 0..100 {
            followed.hurry.notify_one();
        }
        followed.pass(1).await;
        assert_eq!(followed.fetches(), before + 1);
        for _ in 0..400 {
            followed.hurry.notify_one();
            followed.pass(1).await;
        }
        let asked = followed.fetches() - before;
        assert!((30..=41).contains(&asked), "{asked}");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_further_and_further_apart() {
        let followed = Followed::start();
        followed.pass(10 * 60).await;
        // 0.5, 1, 2, 4 … 60 s.
        assert!((12..=26).contains(&followed.fetches()), "{}", followed.fetches());
    }

    #[tokio::test]
    async fn what_nobody_wants_any_more_is_not_asked_for() {
        let nowhere = |_: String| -> super::super::Resolving { Box::pin(std::future::pending()) };
        let sources = KeySources::new(Arc::new(nowhere), []).unwrap();
        let source = RemoteKeys { place: KeyPlace::Uri("http://a/".into()), timeout: Duration::from_secs(5) };
        sources.want(&BTreeSet::from([source.clone()]), &[]);
        let remote = sources.remote(|all| all.get(&source).cloned()).unwrap();
        assert!(!remote.task.is_finished());
        sources.want(&BTreeSet::new(), &[]);
        let task = remote.task.clone();
        drop(remote);
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
        let keys = sources.of(&KeySource::Remote(source));
        assert_eq!(keys.map(drop), Err("they have not been fetched yet".into()));
        assert_eq!(
            sources.of(&KeySource::Inline("{".into())).map(drop),
            Err("jwks can't be used: it is no JSON".into())
        );
    }

    #[tokio::test]
    async fn an_inline_key_set_is_read_once_and_forgotten_with_its_world() {
        // RFC 8037, appendix A.2.
        const KEYS: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        let nowhere = |_: String| -> super::super::Resolving { Box::pin(std::future::pending()) };
        let sources = KeySources::new(Arc::new(nowhere), []).unwrap();
        let kept = || sources.0.inline.read().unwrap().len();
        let text: Arc<str> = KEYS.into();
        let of = |text: &Arc<str>| sources.of(&KeySource::Inline(Arc::clone(text))).unwrap();
        assert!(Arc::ptr_eq(&of(&text), &of(&text)));
        let other: Arc<str> = KEYS.into();
        assert!(!Arc::ptr_eq(&of(&text), &of(&other)));
        assert_eq!(kept(), 2);
        drop((text, other));
        of(&KEYS.into());
        assert_eq!(kept(), 1);
    }
}
