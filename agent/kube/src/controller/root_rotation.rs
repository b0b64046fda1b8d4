//! How what signs is changed for another without anybody meeting a root that it does not know: pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;

use crate::controller::root_secret::{
    certificates, is_marked, mark, previous, put_next, put_previous, remove_next, sign_with,
};
use crate::controller::{RootJudge, RootSecret};

/// What happens to what signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootStep {
    /// A new root is to sign next, and is trusted.
    Begin,
    /// Every namespace has it: from now on it spreads to nodes.
    Published,
    /// It signs.
    Switch,
    /// The previous ones are trusted no more.
    Finish,
    /// What is plugged in is to sign next, and its roots are trusted.
    TakeUp,
    /// What is plugged in signs at once, since everybody trusts its root, or nothing else can sign.
    TakeUpAtOnce,
    /// What is plugged in lists other roots.
    TakeUpRoots,
    /// What was to sign next is not to any more.
    Withdraw,
    /// It is written down that what is there is what signs.
    Mark,
}

/// How long the steps of a rotation are apart.
#[derive(Clone, Copy, Debug)]
pub struct RotationTiming {
    /// Until every node has a new bundle of roots.
    pub spread: Duration,
    /// Until no certificate of the previous root is in use: the lifetime of a workload's.
    pub lifetime: Duration,
}

/// What is due at `now`, where the roots in `published` (PEM) are in every namespace. A rotation is asked for by changing
/// the annotation `orlop.dev/rotate`; not where something is `plugged_in`.
pub(super) fn due(
    secret: &Secret,
    now: Timestamp,
    timing: RotationTiming,
    published: &str,
    plugged_in: bool,
) -> Option<RootStep> {
    let since = |name: &str| {
        // One that can't be read was just made: it is the safe side.
        let at: Timestamp = annotation(secret, name)?.parse().ok()?;
        Duration::try_from(now.duration_since(at)).ok()
    };
    let next = RootSecret::next(secret);
    if let Some(next) = &next {
        if annotation(secret, PUBLISHED).is_none() {
            let published = certificates(published.as_bytes());
            if certificates(&next.roots).iter().all(|root| published.contains(root)) {
                return Some(RootStep::Published);
            }
        } else if since(PUBLISHED).is_some_and(|since| since >= timing.spread) {
            return Some(RootStep::Switch);
        }
    }
    let previous = previous(secret);
    // Another replica may have signed a while longer with what signed before.
    let lasts = timing.lifetime.saturating_add(timing.spread);
    if !previous.is_empty() && since(SWITCHED).is_some_and(|since| since >= lasts) {
        return Some(RootStep::Finish);
    }
    let asked = annotation(secret, ROTATE);
    let idle = next.is_none() && previous.is_empty() && !plugged_in;
    (idle && asked.is_some() && asked != annotation(secret, ROTATED)).then_some(RootStep::Begin)
}

/// Takes a step that is due. Says which was taken, if any.
pub(super) fn step(
    secret: &mut Secret,
    step: RootStep,
    judge: &impl RootJudge,
    now: Timestamp,
) -> Option<RootStep> {
    match step {
        RootStep::Begin => {
            let next = judge.generate()?;
            let asked = annotation(secret, ROTATE).map(str::to_owned);
            begin(secret, &next.into());
            annotate(secret, ROTATED, asked);
        }
        RootStep::Published => annotate(secret, PUBLISHED, Some(now.to_string())),
        RootStep::Switch => {
            let next = RootSecret::next(secret)?;
            if judge.usable(&next).is_err() {
                withdraw(secret);
                return Some(RootStep::Withdraw);
            }
            switch(secret, &next, now);
        }
        RootStep::Finish => {
            put_previous(secret, &[]);
            annotate(secret, SWITCHED, None);
        }
        RootStep::Mark => mark(secret),
        // They depend on what is plugged in.
        RootStep::TakeUp | RootStep::TakeUpAtOnce | RootStep::TakeUpRoots | RootStep::Withdraw => {
            return None;
        }
    }
    Some(step)
}

/// What is plugged in, if it is another than before: it signs at once if everybody trusts its root, or if nothing else
/// can sign, and next otherwise. What can't be used changes nothing.
pub(super) fn take_up(
    secret: &mut Secret,
    plugged_in: &RootSecret,
    judge: &impl RootJudge,
    now: Timestamp,
) -> Result<Option<RootStep>, String> {
    bounded(plugged_in)?;
    let wanted = judge.usable(plugged_in)?;
    let mut changed = secret.clone();
    let signing = RootSecret::signing(secret).and_then(|signing| judge.usable(&signing));
    let taken = match signing {
        Err(_) => {
            switch(&mut changed, &wanted, now);
            if RootSecret::read(&changed).and_then(|root| judge.usable(&root)).is_err() {
                // What was trusted before can't be read either.
                put_previous(&mut changed, &[]);
            }
            RootStep::TakeUpAtOnce
        }
        Ok(signing) if wanted.is_alike(&signing) => {
            if RootSecret::next(secret).is_some() {
                withdraw(&mut changed);
                RootStep::Withdraw
            } else if !is_marked(secret) {
                RootStep::Mark
            } else {
                return Ok(None);
            }
        }
        // Where nothing says that it signs, what is plugged in did, and everybody trusts that.
        Ok(_) if !is_marked(secret) => {
            switch(&mut changed, &wanted, now);
            RootStep::TakeUpAtOnce
        }
        Ok(signing) if wanted.signs_as(&signing) && first(&wanted) == first(&signing) => {
            // What somebody takes out of the list without another key is to be out.
            let (listed, before) = (certificates(&wanted.roots), previous(secret));
            withdraw(&mut changed);
            sign_with(&mut changed, &wanted);
            put_previous(&mut changed, &without(before, &listed));
            RootStep::TakeUpRoots
        }
        Ok(signing) if is_known_to_all(first(&wanted), secret, &signing) => {
            switch(&mut changed, &wanted, now);
            RootStep::TakeUpAtOnce
        }
        Ok(_) => {
            if RootSecret::next(secret).is_some_and(|next| wanted.is_alike(&next)) {
                return Ok(None);
            }
            begin(&mut changed, &wanted);
            RootStep::TakeUp
        }
    };
    mark(&mut changed);
    let result = RootSecret::read(&changed)?;
    bounded(&result)?;
    judge.usable(&result)?;
    *secret = changed;
    Ok(Some(taken))
}

/// What is published everywhere is to stay small, and each root is looked at.
fn bounded(root: &RootSecret) -> Result<(), String> {
    match certificates(&root.roots).len() {
        ..=MOST_ROOTS => Ok(()),
        found => Err(format!(
            "{found} roots would be trusted, more than {MOST_ROOTS}; take out some, or wait until previous ones are \
             trusted no more"
        )),
    }
}

/// The root that its certificate leads to.
fn first(root: &RootSecret) -> Option<String> {
    certificates(&root.roots).into_iter().next()
}

/// Whether it signs, or did: a root that is only listed may have been so for a second.
fn is_known_to_all(root: Option<String>, secret: &Secret, signing: &RootSecret) -> bool {
    root == first(signing) || root.is_some_and(|root| previous(secret).contains(&root))
}

fn begin(secret: &mut Secret, next: &RootSecret) {
    put_next(secret, next);
    annotate(secret, PUBLISHED, None);
}

fn withdraw(secret: &mut Secret) {
    remove_next(secret);
    annotate(secret, PUBLISHED, None);
}

/// Has another sign. What signed so far stays trusted, as what it has signed is in use.
fn switch(secret: &mut Secret, to: &RootSecret, now: Timestamp) {
    let so_far = RootSecret::signing(secret).map(|signing| certificates(&signing.roots)).unwrap_or_default();
    let mut trusted = previous(secret);
    let newly = without(without(so_far, &trusted), &certificates(&to.roots));
    trusted = without(trusted, &certificates(&to.roots));
    if !newly.is_empty() {
        annotate(secret, SWITCHED, Some(now.to_string()));
    }
    trusted.extend(newly);
    withdraw(secret);
    sign_with(secret, to);
    put_previous(secret, &trusted);
}

fn without(mut roots: Vec<String>, others: &[String]) -> Vec<String> {
    roots.retain(|root| !others.contains(root));
    roots
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn annotate(secret: &mut Secret, name: &str, value: Option<String>) {
    let annotations = secret.metadata.annotations.get_or_insert_default();
    match value {
        Some(value) => annotations.insert(name.to_owned(), value),
        None => annotations.remove(name),
    };
}

const ROTATE: &str = "orlop.dev/rotate";
const ROTATED: &str = "orlop.dev/rotated";
const PUBLISHED: &str = "orlop.dev/next-root-published";
const SWITCHED: &str = "orlop.dev/root-switched";

/// Trusted at once.
const MOST_ROOTS: usize = 64;

#[cfg(test)]
mod tests;
