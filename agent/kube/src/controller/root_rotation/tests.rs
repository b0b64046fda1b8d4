use super::*;
use crate::controller::RootPair;
use crate::controller::root_secret::make;

const TIMING: RotationTiming =
    RotationTiming { spread: Duration::from_secs(600), lifetime: Duration::from_secs(86_400) };
/// When the last certificate of the previous root has expired.
const LASTS: i64 = 86_400 + 600;

/// Keys, certificates and roots of one letter each: what is signed with `A…` leads to root `A`.
struct Letters;

impl RootJudge for Letters {
    fn generate(&self) -> Option<RootPair> {
        Some(RootPair { key: b"own key".to_vec(), certificate: pem("OWN").into_bytes() })
    }

    fn usable(&self, root: &RootSecret) -> Result<RootSecret, String> {
        if root.key.starts_with(b"bad") {
            return Err("its key is not its certificate's".to_owned());
        }
        let mut roots = certificates(&root.roots);
        let first = roots.iter().position(|one| signs(one, root)).ok_or("it leads to no root")?;
        roots[..=first].rotate_right(1);
        Ok(RootSecret { roots: roots.concat().into_bytes(), ..root.clone() })
    }
}

fn signs(root: &str, what: &RootSecret) -> bool {
    body(root).as_bytes()[0] == body(&certificates(&what.certificate)[0]).as_bytes()[0]
}

fn body(pem: &str) -> &str {
    pem.lines().nth(1).unwrap()
}

fn pem(body: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

/// An authority whose certificate is of this name, with these roots.
fn authority(name: &str, roots: &[&str]) -> RootSecret {
    let roots: String = roots.iter().map(|root| pem(root)).collect();
    RootSecret {
        key: format!("{name} key").into_bytes(),
        certificate: pem(name).into_bytes(),
        chain: pem(name).into_bytes(),
        roots: roots.into_bytes(),
    }
}

fn secret(root: &RootSecret) -> Secret {
    let mut secret = Secret::default();
    make(&mut secret, root);
    secret
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

/// What signs, and whom everybody trusts.
#[track_caller]
fn is(secret: &Secret, key: &str, roots: &[&str]) {
    let found = RootSecret::read(secret).unwrap();
    let trusted: Vec<_> = certificates(&found.roots).iter().map(|root| body(root).to_owned()).collect();
    assert_eq!(
        (String::from_utf8(found.key).unwrap(), trusted),
        (format!("{key} key"), roots.to_vec().iter().map(|root| (*root).to_owned()).collect())
    );
}

fn ask(secret: &mut Secret, word: &str) {
    annotate(secret, ROTATE, Some(word.to_owned()));
}

/// Everything is published.
fn all(secret: &Secret) -> String {
    String::from_utf8(RootSecret::read(secret).unwrap().roots).unwrap()
}

fn next_due(secret: &Secret, now: i64) -> Option<RootStep> {
    due(secret, at(now), TIMING, &all(secret), false)
}

#[track_caller]
fn takes(secret: &mut Secret, wanted: RootStep, now: i64) {
    assert_eq!(next_due(secret, now), Some(wanted));
    assert_eq!(step(secret, wanted, &Letters, at(now)), Some(wanted));
}

fn plug(secret: &mut Secret, root: &RootSecret, now: i64) -> Result<Option<RootStep>, String> {
    take_up(secret, root, &Letters, at(now))
}

#[test]
fn nothing_is_due_before_somebody_asks() {
    let secret = secret(&authority("A", &["A"]));
    assert_eq!(next_due(&secret, 0), None);
    assert_eq!(next_due(&secret, 1 << 30), None);
}

#[test]
fn a_rotation_overlaps_both_roots() {
    let mut secret = secret(&authority("A", &["A"]));
    ask(&mut secret, "2026");
    takes(&mut secret, RootStep::Begin, 0);
    is(&secret, "A", &["A", "OWN"]);
    // However long it takes until every namespace has it, the time begins then.
    assert_eq!(due(&secret, at(1 << 30), TIMING, &pem("A"), false), None);
    takes(&mut secret, RootStep::Published, 100);
    assert_eq!(next_due(&secret, 699), None);
    takes(&mut secret, RootStep::Switch, 700);
    is(&secret, "own", &["OWN", "A"]);
    assert_eq!(next_due(&secret, 700 + LASTS - 1), None);
    takes(&mut secret, RootStep::Finish, 700 + LASTS);
    is(&secret, "own", &["OWN"]);
    // The same word asks for nothing further.
    assert_eq!(next_due(&secret, 1 << 30), None);
    ask(&mut secret, "2027");
    assert_eq!(
        due(&secret, at(1 << 30), TIMING, "", true),
        None,
        "what is plugged in is not the controller's"
    );
    assert_eq!(next_due(&secret, 1 << 30), Some(RootStep::Begin));
}

#[test]
fn a_time_that_cannot_be_read_ends_no_overlap() {
    let mut secret = secret(&authority("A", &["A"]));
    begin(&mut secret, &authority("B", &["B"]));
    annotate(&mut secret, PUBLISHED, Some("yesterday".to_owned()));
    assert_eq!(next_due(&secret, 1 << 30), None);
}

#[test]
fn another_root_signs_once_all_know_it() {
    let mut secret = secret(&authority("A", &["A"]));
    let wanted = authority("B1", &["B"]);
    assert_eq!(plug(&mut secret, &wanted, 0), Ok(Some(RootStep::TakeUp)));
    is(&secret, "A", &["A", "B"]);
    assert_eq!(plug(&mut secret, &wanted, 5), Ok(None), "once is enough");
    takes(&mut secret, RootStep::Published, 10);
    assert_eq!(plug(&mut secret, &wanted, 15), Ok(None), "nor does it begin anew");
    takes(&mut secret, RootStep::Switch, 610);
    is(&secret, "B1", &["B", "A"]);
    assert_eq!(plug(&mut secret, &wanted, 615), Ok(None));
    takes(&mut secret, RootStep::Finish, 610 + LASTS);
    is(&secret, "B1", &["B"]);
    assert_eq!(plug(&mut secret, &wanted, 1 << 30), Ok(None));
}

#[test]
fn an_intermediate_of_the_same_root_signs_at_once() {
    let mut secret = secret(&authority("A1", &["A"]));
    assert_eq!(plug(&mut secret, &authority("A2", &["A"]), 0), Ok(Some(RootStep::TakeUpAtOnce)));
    is(&secret, "A2", &["A"]);
    assert_eq!(next_due(&secret, 1 << 30), None);
}

#[test]
fn a_root_that_is_only_listed_is_not_yet_known_to_all() {
    let mut secret = secret(&authority("A1", &["A"]));
    assert_eq!(plug(&mut secret, &authority("A1", &["B", "A"]), 0), Ok(Some(RootStep::TakeUpRoots)));
    is(&secret, "A1", &["A", "B"]);
    assert_eq!(plug(&mut secret, &authority("B1", &["B", "A"]), 1), Ok(Some(RootStep::TakeUp)));
    is(&secret, "A1", &["A", "B"]);
    takes(&mut secret, RootStep::Published, 2);
    takes(&mut secret, RootStep::Switch, 602);
    is(&secret, "B1", &["B", "A"]);
    // It is theirs to take out what they have listed themselves.
    assert_eq!(plug(&mut secret, &authority("B1", &["B"]), 603), Ok(Some(RootStep::TakeUpRoots)));
    is(&secret, "B1", &["B"]);
}

#[test]
fn the_way_back_is_open_before_and_after_the_switch() {
    let (old, new) = (authority("A1", &["A"]), authority("B1", &["B"]));
    let mut secret = secret(&old);
    plug(&mut secret, &new, 0).unwrap();
    assert_eq!(plug(&mut secret, &old, 10), Ok(Some(RootStep::Withdraw)));
    is(&secret, "A1", &["A"]);
    assert_eq!(next_due(&secret, 1 << 30), None);

    plug(&mut secret, &new, 20).unwrap();
    takes(&mut secret, RootStep::Published, 20);
    takes(&mut secret, RootStep::Switch, 620);
    // Nobody has forgotten it.
    assert_eq!(plug(&mut secret, &old, 630), Ok(Some(RootStep::TakeUpAtOnce)));
    is(&secret, "A1", &["A", "B"]);
    assert_eq!(next_due(&secret, 620 + LASTS), None, "the time of the other begins anew");
    takes(&mut secret, RootStep::Finish, 630 + LASTS);
    is(&secret, "A1", &["A"]);
}

#[test]
fn what_replaces_the_next_is_published_anew_and_what_replaces_the_last_keeps_both() {
    let mut secret = secret(&authority("A", &["A"]));
    plug(&mut secret, &authority("B", &["B"]), 0).unwrap();
    takes(&mut secret, RootStep::Published, 0);
    assert_eq!(plug(&mut secret, &authority("C", &["C"]), 599), Ok(Some(RootStep::TakeUp)));
    is(&secret, "A", &["A", "C"]);
    takes(&mut secret, RootStep::Published, 600);
    takes(&mut secret, RootStep::Switch, 1200);
    plug(&mut secret, &authority("D", &["D"]), 1300).unwrap();
    is(&secret, "C", &["C", "D", "A"]);
    takes(&mut secret, RootStep::Published, 1300);
    takes(&mut secret, RootStep::Switch, 1900);
    is(&secret, "D", &["D", "A", "C"]);
}

#[test]
fn what_cannot_be_used_changes_nothing() {
    let mut secret = secret(&authority("A", &["A"]));
    let before = secret.clone();
    for broken in [authority("bad", &["B"]), authority("B", &["C"]), authority("B", &[])] {
        assert!(plug(&mut secret, &broken, 0).is_err());
        assert_eq!(secret, before);
    }
    let many: Vec<_> = (0..=MOST_ROOTS).map(|n| format!("B{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(plug(&mut secret, &authority("B", &many), 0).unwrap_err().contains("65 roots"));
    // With the root that signs it is one too many.
    assert!(plug(&mut secret, &authority("B", &many[1..]), 0).unwrap_err().contains("65 roots"));
    assert_eq!(secret, before);
    assert_eq!(plug(&mut secret, &authority("B", &many[2..]), 0), Ok(Some(RootStep::TakeUp)));
}

#[test]
fn what_went_bad_while_it_waited_does_not_sign() {
    let mut secret = secret(&authority("A", &["A"]));
    begin(&mut secret, &authority("bad", &["b"]));
    takes(&mut secret, RootStep::Published, 0);
    assert_eq!(step(&mut secret, RootStep::Switch, &Letters, at(600)), Some(RootStep::Withdraw));
    is(&secret, "A", &["A"]);
}

#[test]
fn the_same_key_below_another_root_waits_until_all_know_that() {
    // Signed crosswise: by its own root, and by another.
    let mut secret = secret(&authority("A1", &["A"]));
    assert_eq!(plug(&mut secret, &authority("A1", &["A2"]), 0), Ok(Some(RootStep::TakeUp)));
    is(&secret, "A1", &["A", "A2"]);
    takes(&mut secret, RootStep::Published, 0);
    assert_eq!(next_due(&secret, 599), None);
    takes(&mut secret, RootStep::Switch, 600);
    is(&secret, "A1", &["A2", "A"]);
}

#[test]
fn what_is_plugged_in_signs_at_once_where_an_earlier_version_had_it_sign() {
    let mut stale = secret(&authority("A", &["A"]));
    stale.metadata.annotations = None;
    let mut unused = stale.clone();
    assert_eq!(plug(&mut stale, &authority("B", &["B"]), 0), Ok(Some(RootStep::TakeUpAtOnce)));
    is(&stale, "B", &["B", "A"]);
    assert_eq!(
        plug(&mut stale, &authority("C", &["C"]), 1),
        Ok(Some(RootStep::TakeUp)),
        "from then on it waits"
    );
    // Where nothing is plugged in, what is there signs, and that is written down.
    assert_eq!(step(&mut unused, RootStep::Mark, &Letters, at(0)), Some(RootStep::Mark));
    assert_eq!(plug(&mut unused, &authority("B", &["B"]), 1), Ok(Some(RootStep::TakeUp)));
    is(&unused, "A", &["A", "B"]);
}

#[test]
fn where_nothing_can_sign_what_is_plugged_in_does_at_once() {
    // It has expired.
    let mut expired = secret(&authority("bad", &["b"]));
    assert_eq!(plug(&mut expired, &authority("B", &["B"]), 0), Ok(Some(RootStep::TakeUpAtOnce)));
    is(&expired, "B", &["B", "b"]);
    // It is no such thing.
    let mut empty = Secret::default();
    assert_eq!(plug(&mut empty, &authority("B", &["B"]), 0), Ok(Some(RootStep::TakeUpAtOnce)));
    is(&empty, "B", &["B"]);
}
