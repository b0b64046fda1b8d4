//! Keeps kernel and proxy in step with the pods that the snapshot enrols on this node.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use orlop_datapath::{AllowedPair, Datapath, NetnsCookie, Wanted};
use orlop_identity::Identities;
use orlop_model::{LocalPod, NamespacedName, Snapshot};
use orlop_proxy::{Inherited, Netns, Pod, Proxy};
use tokio::task::spawn_blocking;

use crate::keeper::Kept;
use crate::sandboxes::{NetnsId, Sandbox, Sandboxes, is_static};

/// What is in force, for readiness and for people.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The snapshot's generation that kernel and proxy are in step with; 0 before the first.
    pub generation: u64,
    /// When its world was so, if that is of the past.
    pub as_of: Option<SystemTime>,
    /// Enrolled pods and their netns cookies.
    pub enrolled: BTreeMap<NamespacedName, NetnsCookie>,
    /// Pods that could not be enrolled, and why.
    pub failed: BTreeMap<NamespacedName, String>,
    /// Pods of which nothing runs yet.
    pub waiting: BTreeSet<NamespacedName>,
    /// Pods of the mesh that are held whenever they are not enrolled; `None` without a boot gate.
    pub gated: Option<BTreeSet<NamespacedName>>,
    /// The agent takes no new connections.
    pub draining: bool,
}

impl Status {
    /// Takes over what was applied.
    pub fn applied(&mut self, snapshot: &Snapshot, applied: Applied) {
        self.generation = snapshot.generation();
        self.as_of = snapshot.as_of();
        self.enrolled = applied.enrolled;
        self.failed = applied.failed;
        self.waiting = applied.waiting;
    }
}

/// The outcome of [`Enrolment::apply`].
#[derive(Debug, Default)]
pub struct Applied {
    /// Enrolled pods and their netns cookies.
    pub enrolled: BTreeMap<NamespacedName, NetnsCookie>,
    /// Pods that could not be enrolled, and why.
    pub failed: BTreeMap<NamespacedName, String>,
    /// Pods of which nothing runs yet.
    pub waiting: BTreeSet<NamespacedName>,
}

/// The pods of this node that are enrolled.
pub struct Enrolment {
    datapath: Arc<Datapath>,
    proxy: Arc<Proxy>,
    identities: Identities,
    sandboxes: Sandboxes,
    /// Whether pods of this node may do without the proxy.
    same_node: bool,
    /// Pairs whose connections could not be closed.
    unclosed: HashSet<AllowedPair>,
    pods: HashMap<NamespacedName, Enrolled>,
    failed: BTreeMap<NamespacedName, String>,
    /// Sockets of an earlier agent that no pod has had use for so far.
    inherited: Inherited,
    /// While it takes over from an agent that runs, which gave them.
    takes_over: bool,
    started: Instant,
}

struct Enrolled {
    place: Place,
    /// As the snapshot had it.
    local: LocalPod,
    pod: Arc<Pod>,
    /// The ports where the kernel refuses plaintext, once it has been told.
    strict: Option<BTreeMap<u16, bool>>,
    /// It is no longer to be enrolled, and something of it may be left in the kernel: why.
    leaving: Option<String>,
}

/// Where a pod's netns was when it was enrolled.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Where its object says.
    Named(PathBuf),
    /// Where its processes are.
    Found(NetnsId),
}

/// Where a pod's netns is.
enum Located {
    Named(PathBuf),
    Found(Sandbox),
    /// Nothing of it runs.
    Nowhere,
}

impl Enrolment {
    /// Between two attempts to enrol what could not be.
    pub const RETRY: Duration = Duration::from_millis(200);
    /// Between two looks for pods of which nothing runs yet, where the kernel tells of no process that starts.
    pub const LOOK_AGAIN: Duration = Duration::from_secs(1);
    /// Between two attempts to answer the DNS of pods where somebody has the port.
    pub const RETRY_DNS: Duration = Duration::from_secs(2);

    /// How long sockets of an agent that has died wait for their pods, where not all of those are known and enrolled.
    const INHERITED: Duration = Duration::from_secs(30);

    /// With the sockets of an earlier agent, if there are any: of one that has died, or of one that runs and from which
    /// this one `takes_over`.
    pub fn new(
        datapath: Arc<Datapath>,
        proxy: Arc<Proxy>,
        identities: Identities,
        sandboxes: Sandboxes,
        same_node: bool,
        inherited: Inherited,
        takes_over: bool,
    ) -> Self {
        let (unclosed, pods, failed) = (HashSet::new(), HashMap::new(), BTreeMap::new());
        Self {
            datapath,
            proxy,
            identities,
            sandboxes,
            same_node,
            unclosed,
            pods,
            failed,
            inherited,
            takes_over,
            started: Instant::now(),
        }
    }

    /// The earlier agent has left. Its sockets that no pod had use for are closed.
    pub fn taken_over(&mut self) {
        self.takes_over = false;
        self.inherited = Inherited::default();
    }

    /// How long sockets of an agent that has died still wait for their pods; `None` if there are none.
    pub fn waits(&self) -> Option<Duration> {
        let waits = !self.takes_over && !self.inherited.is_empty();
        waits.then(|| Self::INHERITED.saturating_sub(self.started.elapsed()))
    }

    /// What is to be held while no agent runs.
    pub fn kept(&self) -> Kept {
        let pods = self.enrolled().map(|(_, enrolled)| Arc::clone(&enrolled.pod)).collect();
        Kept { pods, settled: self.inherited.is_empty() }
    }

    /// The pods that are enrolled.
    pub fn pods(&self) -> impl Iterator<Item = (&NamespacedName, &Pod)> {
        self.enrolled().map(|(name, enrolled)| (name, &*enrolled.pod))
    }

    fn enrolled(&self) -> impl Iterator<Item = (&NamespacedName, &Enrolled)> {
        self.pods.iter().filter(|(_, enrolled)| enrolled.leaving.is_none())
    }

    /// Whether the DNS of a pod is left alone although it should not be.
    pub fn lacks_dns(&self) -> bool {
        self.pods().any(|(_, pod)| self.proxy.lacks_dns(pod))
    }

    /// Puts this agent's sockets and programs in force again, which another agent may have replaced.
    pub fn restore(&mut self) -> anyhow::Result<()> {
        for (_, Enrolled { local, pod, .. }) in self.enrolled() {
            self.lead_to(pod, local)?;
        }
        self.pods.values_mut().for_each(|enrolled| enrolled.strict = None);
        Ok(self.datapath.attach()?)
    }

    /// Enrols and withdraws until kernel and proxy match `snapshot`, off the runtime's thread.
    pub async fn apply(mut self, snapshot: Arc<Snapshot>) -> anyhow::Result<(Self, Applied)> {
        // An agent serves these pods and has certificates: this one takes none of them over without.
        if self.takes_over {
            let identities = snapshot.local_pods().iter().map(|local| &local.workload.identity);
            let identities: HashSet<_> = identities.collect();
            for identity in &identities {
                // What fails is told of each pod.
                let _ = self.identities.ensure(identity);
            }
            for identity in identities {
                self.identities.attempted(identity).await;
            }
        }
        spawn_blocking(move || {
            let mut applied = self.reconcile(&snapshot);
            // What an earlier agent still serves is not this one's to cut.
            if !self.takes_over {
                self.judge_again(&snapshot, &mut applied)?;
            }
            self.report(&applied.failed);
            Ok((self, applied))
        })
        .await
        .context("enrolment panicked")?
    }

    fn reconcile(&mut self, snapshot: &Snapshot) -> Applied {
        let wanted: HashMap<_, _> =
            snapshot.local_pods().iter().map(|local| (&local.workload.name, local)).collect();
        let places: HashMap<_, _> =
            wanted.iter().map(|(name, local)| (*name, self.locate(snapshot, local))).collect();
        let uids: HashSet<_> = wanted.values().map(|local| &*local.workload.uid).collect();
        self.sandboxes.retain(|uid| uids.contains(uid));
        let is_at = |name: &NamespacedName, enrolled: &Enrolled| {
            let (Some(local), Some(place)) = (wanted.get(name), places.get(name)) else { return false };
            enrolled.is_at(local, place)
        };
        let gone: Vec<_> = self
            .pods
            .iter()
            .filter(|(name, enrolled)| !is_at(name, enrolled))
            .map(|(name, _)| name.clone())
            .collect();
        let mut applied = Applied::default();
        for name in gone {
            if let Err(error) = self.withdraw(&name) {
                applied.failed.insert(name, error);
            }
        }

        let mut places = places;
        for local in snapshot.local_pods() {
            let name = &local.workload.name;
            match places.remove(name).unwrap_or(Ok(Located::Nowhere)) {
                Ok(Located::Nowhere) if !self.pods.contains_key(name) => {
                    applied.waiting.insert(name.clone());
                }
                place => {
                    if let Err(error) = place.and_then(|place| self.enrol(local, &place)) {
                        applied.failed.insert(name.clone(), format!("{error:#}"));
                    }
                }
            }
        }
        self.refuse_plaintext(snapshot);
        // None of the unknown ones is this agent's to open before it has taken over, or while it knows of the past alone.
        let all_known = applied.failed.is_empty() && applied.waiting.is_empty();
        if !self.takes_over
            && snapshot.as_of().is_none()
            && let Err(error) = self.withdraw_strays(snapshot, all_known)
        {
            tracing::error!(error = format!("{error:#}"), "cannot withdraw what an earlier agent enrolled");
        }
        let knows_all = all_known && snapshot.as_of().is_none();
        if !self.takes_over && (knows_all || self.started.elapsed() >= Self::INHERITED) {
            self.inherited = Inherited::default();
        }
        let identities: HashSet<_> =
            snapshot.local_pods().iter().map(|local| local.workload.identity.clone()).collect();
        self.identities.retain(&identities);
        applied.enrolled = self.pods().map(|(name, pod)| (name.clone(), pod.netns().cookie())).collect();
        applied
    }

    fn locate(&mut self, snapshot: &Snapshot, local: &LocalPod) -> anyhow::Result<Located> {
        if let Some(path) = &local.netns {
            return Ok(Located::Named(path.clone()));
        }
        let uid = &*local.workload.uid;
        anyhow::ensure!(
            !uid.is_empty(),
            "neither a UID nor an annotation orlop.dev/netns says where its netns is"
        );
        // Whoever may make pods and write their status may make an object that claims it, until kubelet deletes that.
        anyhow::ensure!(
            !is_static(uid) || !snapshot.is_contested(&local.workload),
            "another pod of this node claims to be the same static pod: one of the two objects is not kubelet's"
        );
        Ok(self.sandboxes.find(uid)?.map_or(Located::Nowhere, Located::Found))
    }

    fn enrol(&mut self, local: &LocalPod, place: &Located) -> anyhow::Result<()> {
        let workload = &local.workload;
        if let Some(enrolled) = self.pods.get(&workload.name) {
            if let Some(left) = &enrolled.leaving {
                bail!("{left}");
            }
            return self.change(local);
        }
        let Some((netns, place)) = place.open()? else { return Ok(()) };
        match self.identities.ensure(&workload.identity) {
            Err(error) if self.takes_over => return Err(error.into()),
            Ok(()) if self.takes_over && !self.identities.is_valid(&workload.identity) => {
                bail!("no certificate for {} yet", workload.identity)
            }
            // Without a certificate the pod is enrolled all the same, and refused until there is one.
            Err(error) => tracing::error!(pod = %workload.name, %error, "no certificate yet"),
            Ok(()) => {}
        }
        let pod = self.proxy.add(workload.name.clone(), netns, &mut self.inherited);
        let pod = pod.context("cannot listen in its netns")?;
        self.lead_to(&pod, local).inspect_err(|_| self.proxy.remove(&pod))?;
        tracing::info!(pod = %workload.name, identity = %workload.identity, netns = pod.netns().cookie(), "enrolled");
        self.pods.insert(
            workload.name.clone(),
            Enrolled { place, local: local.clone(), pod, strict: None, leaving: None },
        );
        Ok(())
    }

    /// Takes over what has changed of a pod that is enrolled, which it is all the while.
    fn change(&mut self, local: &LocalPod) -> anyhow::Result<()> {
        let name = &local.workload.name;
        let Some(enrolled) = self.pods.get(name) else { return Ok(()) };
        let before = &enrolled.local;
        if before.workload.identity != local.workload.identity {
            self.identities.ensure(&local.workload.identity)?;
        }
        let differs = before.workload.addresses != local.workload.addresses || before.probed != local.probed;
        // Most likely an agent that drains has had the port until now.
        let dns = self.proxy.lacks_dns(&enrolled.pod) && self.proxy.open_dns(&enrolled.pod)?;
        if differs || dns {
            self.lead_to(&enrolled.pod, local)?;
            self.proxy.readdressed(&enrolled.pod);
            tracing::info!(pod = %name, addresses = ?local.workload.addresses, dns, "changed");
        }
        if let Some(enrolled) = self.pods.get_mut(name) {
            enrolled.local = local.clone();
        }
        Ok(())
    }

    fn lead_to(&self, pod: &Pod, local: &LocalPod) -> anyhow::Result<()> {
        let listeners: Vec<_> = pod.listeners().collect();
        self.datapath.set_probes(pod.netns().cookie(), local.probed.as_ref())?;
        Ok(self.datapath.enrol(&orlop_datapath::Enrolment {
            netns: pod.netns().as_fd(),
            cookie: pod.netns().cookie(),
            addresses: &local.workload.addresses,
            listeners: &listeners,
            dns: pod.dns(),
        })?)
    }

    /// What is left when this fails is refused or served as before, and is tried again. Says why it failed.
    fn withdraw(&mut self, name: &NamespacedName) -> Result<(), String> {
        let Some(enrolled) = self.pods.get_mut(name) else { return Ok(()) };
        if let Err(error) = self.datapath.withdraw(enrolled.pod.netns().cookie()) {
            let error = format!("cannot withdraw it: {:#}", anyhow::Error::from(error));
            return Err(enrolled.leaving.insert(error).clone());
        }
        self.proxy.remove(&enrolled.pod);
        self.pods.remove(name);
        tracing::info!(pod = %name, "withdrawn");
        Ok(())
    }

    /// Brings what the kernel knows of services and policy in step, and closes the connections that it no longer
    /// allows.
    fn judge_again(&mut self, snapshot: &Arc<Snapshot>, applied: &mut Applied) -> anyhow::Result<()> {
        self.datapath.renew_services(self.same_node.then_some(snapshot))?;
        let pods: HashMap<_, _> = self.pods.values().map(|pod| (pod.pod.netns().cookie(), pod)).collect();
        let allowed = |pair: &AllowedPair| {
            let (Some(source), Some(pod)) = (pods.get(&pair.source), pods.get(&pair.pod)) else {
                return false;
            };
            // As it is now, even if the change of its pod has failed.
            let Some(workload) = snapshot.workload(&source.local.workload.name) else { return false };
            let found = snapshot.same_node(workload, pair.destination);
            let same = found.is_some_and(|found| {
                found.source == pair.source_ip && found.destination.name == pod.local.workload.name
            });
            self.same_node && same && source.leaving.is_none() && pod.leaving.is_none()
        };
        let mut revoked = mem::take(&mut self.unclosed);
        revoked.extend(self.datapath.renew_verdicts(snapshot.generation(), allowed)?);
        let is_known = |cookie| pods.contains_key(&cookie);
        let mut unclosed: HashSet<_> =
            revoked.iter().filter(|pair| !is_known(pair.source) && !is_known(pair.pod)).copied().collect();
        if !unclosed.is_empty() {
            // Of an earlier agent's pods, which this one has not enrolled yet.
            let there: HashSet<_> = self.datapath.enrolled()?.into_iter().collect();
            unclosed.retain(|pair| there.contains(&pair.source) || there.contains(&pair.pod));
        }
        for (&cookie, enrolled) in &pods {
            let ends: Vec<_> =
                revoked.iter().filter(|pair| pair.source == cookie || pair.pod == cookie).collect();
            if ends.is_empty() {
                continue;
            }
            let wanted = |pair: &&AllowedPair| match pair.source == cookie {
                true => Wanted::To(pair.destination),
                false => Wanted::At(pair.destination, pair.source_ip),
            };
            let wanted: Vec<_> = ends.iter().map(wanted).collect();
            let pod = &enrolled.local.workload.name;
            match self.datapath.close(enrolled.pod.netns().as_fd(), &wanted) {
                Ok(0) => {}
                Ok(closed) => {
                    tracing::info!(%pod, connections = closed, "closed, as they are no longer allowed")
                }
                Err(error) => {
                    applied.failed.insert(pod.clone(), format!("{:#}", anyhow::Error::from(error)));
                    unclosed.extend(ends);
                }
            }
        }
        let closed = revoked.into_iter().filter(|pair| !unclosed.contains(pair));
        self.datapath.forget_verdicts(closed)?;
        self.unclosed = unclosed;
        Ok(())
    }

    /// Lets the kernel refuse what the proxy would refuse for want of mutual TLS. If that fails the proxy does.
    fn refuse_plaintext(&mut self, snapshot: &Snapshot) {
        for enrolled in self.pods.values_mut().filter(|enrolled| enrolled.leaving.is_none()) {
            let strict = snapshot.strict_ports(&enrolled.local.workload);
            if enrolled.strict.as_ref() == Some(&strict) {
                continue;
            }
            match self.datapath.set_strict(enrolled.pod.netns().cookie(), &strict) {
                Ok(()) => enrolled.strict = Some(strict),
                Err(error) => {
                    let pod = &enrolled.local.workload.name;
                    tracing::warn!(%pod, error = format!("{:#}", anyhow::Error::from(error)), "plaintext is refused by the proxy alone");
                }
            }
        }
    }

    /// Withdraws what is in the kernel and of no pod of the mesh: pods that went, or left the mesh, while no agent ran.
    /// Unless all pods of the mesh are known, a netns of which nobody can tell whose it is may be one of theirs: it stays
    /// refused.
    fn withdraw_strays(&mut self, snapshot: &Snapshot, all_known: bool) -> anyhow::Result<()> {
        let known: HashSet<_> = self.pods.values().map(|enrolled| enrolled.pod.netns().cookie()).collect();
        let mut strays = self.datapath.enrolled()?;
        strays.retain(|cookie| !known.contains(cookie));
        let outside = match all_known || strays.is_empty() {
            true => HashSet::new(),
            false => self.outside(snapshot),
        };
        let withdrawn = |cookie| {
            if !all_known && !outside.contains(&cookie) && !self.datapath.is_gone(cookie)? {
                return Ok(false);
            }
            self.datapath.withdraw(cookie)?;
            tracing::info!(netns = cookie, "withdrawn, as no pod of the mesh has it any more");
            Ok(true)
        };
        // One that fails holds up no other.
        let all: Vec<anyhow::Result<bool>> = strays.into_iter().map(withdrawn).collect();
        let all: Vec<bool> = all.into_iter().collect::<Result<_, _>>()?;
        if !all.contains(&false) {
            for layout in self.datapath.remove_other_layouts()? {
                tracing::info!(layout = %layout.display(), "removed what an agent of another version had pinned");
            }
        }
        Ok(())
    }

    /// The netns of this node's pods that are outside the mesh, where that can be told and no pod of the mesh is there too.
    fn outside(&mut self, snapshot: &Snapshot) -> HashSet<NetnsCookie> {
        let mut cookie = |local: &LocalPod| Some(self.locate(snapshot, local).ok()?.open().ok()??.0.cookie());
        let mut found: HashSet<_> = snapshot.pods_outside().filter_map(|local| cookie(&local)).collect();
        for inside in snapshot.local_pods().iter().filter_map(cookie) {
            found.remove(&inside);
        }
        found
    }

    /// Says what fails once, not at every attempt.
    fn report(&mut self, failed: &BTreeMap<NamespacedName, String>) {
        for (name, error) in failed {
            if self.failed.get(name) != Some(error) {
                tracing::warn!(pod = %name, error, "not as it should be; its connections stay as they are; trying again");
            }
        }
        self.failed.clone_from(failed);
    }
}

impl Located {
    /// Its netns, and what to know it again by.
    fn open(&self) -> anyhow::Result<Option<(Netns, Place)>> {
        Ok(match self {
            Self::Named(path) => {
                let netns = Netns::open(path);
                let netns = netns.with_context(|| format!("cannot open its netns {}", path.display()))?;
                Some((netns, Place::Named(path.clone())))
            }
            Self::Found(sandbox) => {
                let path = format!("/proc/self/fd/{}", sandbox.netns.as_raw_fd());
                let netns = Netns::open(Path::new(&path)).context("cannot open its netns")?;
                Some((netns, Place::Found(sandbox.id)))
            }
            Self::Nowhere => None,
        })
    }
}

impl Enrolled {
    /// Whether it is this pod, in the same netns, and nothing of it has been withdrawn.
    fn is_at(&self, local: &LocalPod, located: &anyhow::Result<Located>) -> bool {
        let same_pod = local.workload.uid == self.local.workload.uid;
        let is_netns =
            |path| Netns::open(path).is_ok_and(|netns| netns.cookie() == self.pod.netns().cookie());
        let is_here = match (located, &self.place) {
            (Ok(Located::Named(path)), Place::Named(enrolled)) => {
                path == enrolled && (same_pod || is_netns(path))
            }
            (Ok(Located::Found(sandbox)), Place::Found(enrolled)) => sandbox.id == *enrolled,
            // It stays refused to outsiders until it is known where it is now.
            (Ok(Located::Nowhere) | Err(_), Place::Found(_)) => same_pod,
            _ => false,
        };
        self.leaving.is_none() && is_here
    }
}
