use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// A kernel boots in 3 s and is through in a minute on an idle machine; this one may be busy.
const TIMEOUT: Duration = Duration::from_secs(600);

/// What a guest wrote to its serial console.
pub(super) struct Outcome {
    pub(super) console: String,
}

impl Outcome {
    /// The exit code that the guest's init tells of a step, on a line of its own.
    pub(super) fn result(&self, step: &str) -> Result<&str> {
        let head = format!("guest {step}: ");
        let found = self.console.lines().find_map(|line| line.trim().strip_prefix(&head));
        found.with_context(|| format!("the guest never told the result of `{step}`"))
    }

    /// How many tests passed, as the test harness says.
    pub(super) fn passed(&self) -> Result<usize> {
        let line = self.console.lines().find_map(|line| line.trim().strip_prefix("test result: "));
        let count = line.and_then(|line| line.split(' ').nth(1)?.parse().ok());
        count.context("the tests did not come to an end")
    }

    /// How many features `orlop check` says are missing.
    pub(super) fn missing(&self) -> usize {
        self.console.lines().filter(|line| line.trim_start().starts_with("MISSING ")).count()
    }
}

/// Boots the kernel with plain emulation, which works on any machine, and waits until it powers off.
///
/// It has one processor: with two, QEMU 7.2 (Debian 12's) at times runs code that the kernel has just patched as it
/// was before.
pub(super) fn boot(vmlinuz: &Path, initramfs: &Path, processor: &str) -> Result<Outcome> {
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-cpu", processor, "-smp", "1", "-m", "1536"])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(initramfs)
        // On a panic the guest reboots at once, which ends the emulator.
        // Nor does its check of the timer know that an emulator may stand still.
        .args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("running qemu-system-x86_64")?;
    let mut serial = qemu.stdout.take().context("the emulator has no output")?;
    let (sender, ended) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut console = Vec::new();
        // What was read before an error counts: a missing result fails.
        let _ = serial.read_to_end(&mut console);
        let _ = sender.send(());
        String::from_utf8_lossy(&console).into_owned()
    });
    let in_time = ended.recv_timeout(TIMEOUT).is_ok();
    let _ = qemu.kill();
    qemu.wait().context("waiting for the emulator")?;
    let mut console = reader.join().unwrap_or_default();
    if !in_time {
        console += &format!("\n(ended by force after {} s)", TIMEOUT.as_secs());
    }
    Ok(Outcome { console })
}
