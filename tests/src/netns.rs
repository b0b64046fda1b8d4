use std::fs::{self, File};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` looks for named network namespaces.
pub(crate) const DIR: &str = "/run/netns";

/// The kernel is that late only where something is wrong.
const LINK_TIMEOUT: Duration = Duration::from_secs(20);

/// A network namespace with a name that `ip netns` knows.
#[derive(Clone, Debug)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    /// Makes an empty namespace. IPv6 works in it without waiting for duplicate address detection.
    pub(crate) fn create(name: String) -> Result<Self> {
        prepare_dir()?;
        let netns = Self { name };
        let path = netns.path();
        File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            mount(Some("/proc/thread-self/ns/net"), &path, NONE, MsFlags::MS_BIND, NONE)
                .with_context(|| format!("mounting {}", path.display()))?;
            for (key, value) in [("disable_ipv6", "0"), ("accept_dad", "0"), ("router_solicitations", "0")] {
                sysctl(&format!("net/ipv6/conf/all/{key}"), value)?;
                sysctl(&format!("net/ipv6/conf/default/{key}"), value)?;
            }
            Ok(())
        })
        .map(|()| netns)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    pub(crate) fn open(&self) -> Result<File> {
        let path = self.path();
        File::open(&path).with_context(|| format!("opening {}: is its testbed gone?", path.display()))
    }

    /// Runs `f` on a fresh thread inside the namespace; a panic in `f` goes on in the caller.
    pub(crate) fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        on_thread(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.name))?;
            Ok(f())
        })
    }

    /// Runs the lines of `script` as `ip` commands, all in one process, stopping at the first failure.
    pub(crate) fn ip(&self, script: &str) -> Result<()> {
        self.enter(|| ip_batch(script))?.with_context(|| format!("configuring {}", self.name))
    }

    /// Waits until a link carries frames, and as a bridge's port forwards them. The kernel gets round to that after
    /// `ip` has returned, and drops frames till then.
    pub(crate) fn await_link(&self, link: &str) -> Result<()> {
        let deadline = Instant::now() + LINK_TIMEOUT;
        loop {
            let shown = self.enter(|| show_link(link))??;
            let up = shown.contains(" state UP ");
            if up && (!shown.contains(" master ") || shown.contains("bridge_slave state forwarding")) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{link} of {} is not up after {LINK_TIMEOUT:?}: {shown}", self.name);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sets `/proc/sys/KEY` as seen in the namespace.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| sysctl(key, value))?
    }
}

/// `SO_NETNS_COOKIE` of the calling thread's network namespace.
pub(crate) fn cookie() -> Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = UdpSocket::bind(("127.0.0.1", 0)).context("making a socket")?;
    let mut cookie = 0_u64;
    let mut length = 8;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which has as many.
    let result = unsafe {
        let (cookie, length) = ((&raw mut cookie).cast(), &raw mut length);
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, cookie, length)
    };
    Errno::result(result).context("asking for the network namespace's cookie")?;
    Ok(cookie)
}

/// Removes a name; the namespace goes once the last process and socket in it does.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("unmounting {}", path.display())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Keeps other testbeds, and `ip netns`, from changing the machine's mounts at the same time.
pub(crate) fn lock() -> Result<Flock<File>> {
    fs::create_dir_all(DIR).with_context(|| format!("creating {DIR}"))?;
    let dir = File::open(DIR).with_context(|| format!("opening {DIR}"))?;
    Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, error)| anyhow!("locking {DIR}: {error}"))
}

const NONE: Option<&str> = None;

/// Makes `/run/netns` the shared mount that `ip netns` would make of it.
///
/// Otherwise the first `ip netns add` on the machine would do so over our mounts, and pin copies of them.
fn prepare_dir() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_some() {
        return Ok(());
    }
    let _lock = lock()?;
    let share = || mount(NONE, DIR, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE);
    if share() == Err(Errno::EINVAL) {
        mount(Some(DIR), DIR, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
            .with_context(|| format!("mounting {DIR} on itself"))?;
        share().with_context(|| format!("sharing the mount {DIR}"))?;
    }
    DONE.get_or_init(|| ());
    Ok(())
}

fn on_thread<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    })
}

fn sysctl(key: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(key), value).with_context(|| format!("setting {key} to {value}"))
}

fn show_link(link: &str) -> Result<String> {
    let output = Command::new("ip")
        .args(["-d", "-o", "link", "show", "dev", link])
        .output()
        .context("running `ip`: is iproute2 installed?")?;
    if !output.status.success() {
        bail!("`ip link show dev {link}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ip_batch(script: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running `ip`: is iproute2 installed?")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A failing `ip` closes its end early; its own message says more than EPIPE.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().context("waiting for `ip`")?;
    if !output.status.success() {
        bail!("`ip -batch` failed: {}\n{script}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
