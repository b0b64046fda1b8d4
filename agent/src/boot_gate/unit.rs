//! The unit of systemd's that runs `orlop gate` when the node starts.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tokio::{sync::watch, task::spawn_blocking};

use crate::cli::NodeArguments;

const NAME: &str = "orlop-gate.service";
/// What makes it part of the node's start, as `systemctl enable` does.
const WANTED: &str = "multi-user.target.wants";
/// What starts pods: kubelet, or what it can't do without, by all the names that they go by.
const BEFORE: [&str; 13] = [
    "kubelet.service",
    "containerd.service",
    "crio.service",
    "docker.service",
    "k3s.service",
    "k3s-agent.service",
    "rke2-server.service",
    "rke2-agent.service",
    "k0scontroller.service",
    "k0sworker.service",
    "snap.kubelet-eks.daemon.service",
    "snap.microk8s.daemon-containerd.service",
    "snap.microk8s.daemon-kubelite.service",
];

/// What there is to be of the unit on this node.
#[derive(Debug)]
pub struct Unit {
    /// Where systemd has its units; `None` if there is to be none.
    units: Option<PathBuf>,
    state_dir: PathBuf,
    run_dir: PathBuf,
    args: Vec<OsString>,
}

impl Unit {
    /// As the arguments say; `None` where nothing is kept in `--state-dir`.
    pub fn of(arguments: &NodeArguments) -> Option<Self> {
        arguments.world.kube.then(|| Self {
            units: arguments.gate.boot_gate_unit.clone(),
            state_dir: arguments.place.state_dir.clone(),
            run_dir: arguments.place.run_dir.clone(),
            args: [&arguments.place.to_args()[..], &arguments.gate.static_pods.to_args()].concat(),
        })
    }

    /// Brings the node in step, meanwhile. What comes is whether `orlop gate` holds the pods that the agent knows after a
    /// reboot. What fails is told, and all else is as without.
    pub fn renew(self) -> watch::Receiver<bool> {
        let (holds, told) = watch::channel(false);
        spawn_blocking(move || {
            let renewed = match &self.units {
                Some(units) => self.install(units),
                None => forget(&self.state_dir).map(|()| false),
            };
            match renewed {
                Ok(renewed) => drop(holds.send_replace(renewed)),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(
                        error,
                        "after a reboot, pods without a volume of gate.orlop.dev are not held"
                    );
                }
            }
        });
        told
    }

    /// Writes the unit, and the program that it runs, this one, to the node's disk. Says whether it will run: not where it
    /// should have when this machine started.
    fn install(&self, units: &Path) -> anyhow::Result<bool> {
        let program = program(&self.state_dir);
        let unit = text(&self.state_dir, &program, &self.args)?;
        let was_there = program.exists();
        copy(Path::new("/proc/self/exe"), &program)
            .with_context(|| format!("cannot copy this program to {}", program.display()))?;
        enable(units, &unit).with_context(|| {
            format!("cannot write {NAME} to {}; is it where systemd has its units?", units.display())
        })?;
        if was_there && !marked(&self.run_dir).exists() {
            tracing::error!(
                "orlop gate has not run when this machine started, and may not the next time: `journalctl -u {NAME}` says \
                 why, if it was there"
            );
            return Ok(false);
        }
        mark(&self.run_dir)?;
        Ok(true)
    }
}

/// The unit, wherever it is, does nothing from now on.
pub fn forget(state_dir: &Path) -> anyhow::Result<()> {
    let program = program(state_dir);
    match fs::remove_file(&program) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", program.display()))
        }
        _ => Ok(()),
    }
}

/// Since this machine started, `orlop gate` has run, or has been installed.
pub fn mark(run_dir: &Path) -> anyhow::Result<()> {
    let mark = marked(run_dir);
    let made =
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir).and_then(|()| File::create(&mark));
    made.with_context(|| format!("cannot make {}", mark.display())).map(drop)
}

fn marked(run_dir: &Path) -> PathBuf {
    run_dir.join("gate")
}

fn program(state_dir: &Path) -> PathBuf {
    state_dir.join("bin/orlop")
}

/// Pods start once it is ready, or has failed. Without the program it does nothing.
fn text(state_dir: &Path, program: &Path, args: &[OsString]) -> anyhow::Result<String> {
    anyhow::ensure!(state_dir.is_absolute(), "--state-dir {} is not absolute", state_dir.display());
    let words =
        [program.as_os_str(), "gate".as_ref()].into_iter().chain(args.iter().map(OsString::as_os_str));
    let words = words.map(|word| word.to_str().with_context(|| format!("{} is not UTF-8", word.display())));
    let command = words.map(|word| quoted(word?, true)).collect::<anyhow::Result<Vec<_>>>()?.join(" ");
    let path = |path: &Path| quoted(path.to_str().unwrap_or_default(), false);
    Ok(format!(
        "# Written by `orlop node --boot-gate-unit`.\n\
         [Unit]\n\
         Description=Holds pods of the Orlop mesh that start without the node's agent\n\
         RequiresMountsFor={}\n\
         ConditionPathExists={}\n\
         Before={}\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=notify\n\
         ExecStart={command}\n\
         TimeoutStartSec=30s\n\
         Restart=on-failure\n\
         RestartSec=1s\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        path(state_dir)?,
        program.to_str().unwrap_or_default().replace('%', "%%"),
        BEFORE.join(" "),
    ))
}

/// One word of a list of systemd's (systemd.syntax(7)), or of a command (systemd.service(5), "Command lines"), where `$`
/// has a meaning too.
fn quoted(word: &str, of_command: bool) -> anyhow::Result<String> {
    anyhow::ensure!(!word.contains(char::is_control), "{word:?} can't be in a unit of systemd's");
    let mut quoted = String::from("\"");
    for c in word.chars() {
        match c {
            '%' => quoted.push_str("%%"),
            '$' if of_command => quoted.push_str("$$"),
            '"' | '\\' => quoted.extend(['\\', c]),
            c => quoted.push(c),
        }
    }
    Ok(quoted + "\"")
}

fn enable(units: &Path, unit: &str) -> io::Result<()> {
    let path = units.join(NAME);
    if fs::read_to_string(&path).ok().as_deref() != Some(unit) {
        replace(&path, 0o644, |file| file.write_all(unit.as_bytes()))?;
    }
    let wanted = units.join(WANTED);
    fs::create_dir_all(&wanted)?;
    match symlink(Path::new("..").join(NAME), wanted.join(NAME)) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| File::open(&wanted)?.sync_all()),
    }
}

/// Copies a program that root is to run, unless it is there.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let directory = to.parent().unwrap_or(to);
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    // Whoever may write there could have root run something else.
    for path in [Some(directory), directory.parent()].into_iter().flatten() {
        let found = fs::metadata(path)?;
        if found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            let problem =
                format!("others than its owner may write to {}, or it is not root's", path.display());
            return Err(io::Error::new(ErrorKind::PermissionDenied, problem));
        }
    }
    let mut source = File::open(from)?;
    if let Ok(mut there) = File::open(to)
        && there.metadata()?.mode() & 0o7777 == PROGRAM_MODE
        && is_same(&mut source, &mut there)?
    {
        return Ok(());
    }
    let mut source = File::open(from)?;
    replace(to, PROGRAM_MODE, |file| io::copy(&mut source, file).map(drop))
}

const PROGRAM_MODE: u32 = 0o755;

/// Puts a file in the place of another, whole or not at all, also if the machine loses power meanwhile.
fn replace(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        // Of one that was broken off.
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    write(&mut file)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(new, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

fn is_same(one: &mut File, other: &mut File) -> io::Result<bool> {
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut here, mut there) = ([0; 16 << 10], [0; 16 << 10]);
    loop {
        let length = one.read(&mut here)?;
        if length == 0 {
            return Ok(true);
        }
        match other.read_exact(&mut there[..length]) {
            Ok(()) if here[..length] == there[..length] => {}
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error),
            _ => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;

    fn directory(of: &str) -> PathBuf {
        let directory = env::temp_dir().join(format!("orlop-unit-{of}-{}", process::id()));
        DirBuilder::new().mode(0o755).create(&directory).unwrap();
        directory
    }

    #[test]
    fn what_means_something_to_systemd_is_taken_as_it_is() {
        let state = Path::new("/var/lib/50% $");
        let unit = text(state, &program(state), &["--node=a b$".into()]).unwrap();
        assert!(unit.contains("\nRequiresMountsFor=\"/var/lib/50%% $\"\n"), "{unit}");
        assert!(unit.contains("\nConditionPathExists=/var/lib/50%% $/bin/orlop\n"), "{unit}");
        let command = "\nExecStart=\"/var/lib/50%% $$/bin/orlop\" \"gate\" \"--node=a b$$\"\n";
        assert!(unit.contains(command), "{unit}");
        assert_eq!(quoted(r#"a"b\c$d%e"#, true).unwrap(), r#""a\"b\\c$$d%%e""#);
        assert!(text(state, Path::new("/x"), &["--node=a\nExecStart=/bin/sh".into()]).is_err());
        assert!(text(Path::new("state"), Path::new("state/x"), &[]).is_err());
    }

    #[test]
    fn a_program_is_copied_where_it_differs_and_forgotten_again() {
        let state_dir = directory("copy");
        let (from, to) = (state_dir.join("from"), program(&state_dir));
        let long = "x".repeat(40_000);
        for content in [long.clone(), format!("y{long}"), long.replace('x', "z")] {
            fs::write(&from, &content).unwrap();
            copy(&from, &to).unwrap();
            assert_eq!(fs::read_to_string(&to).unwrap(), content);
            let before = fs::metadata(&to).unwrap();
            assert_eq!(before.mode() & 0o777, 0o755);
            copy(&from, &to).unwrap();
            assert_eq!(fs::metadata(&to).unwrap().ino(), before.ino(), "it was there");
        }
        fs::set_permissions(&to, Permissions::from_mode(0o777)).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o755);
        forget(&state_dir).unwrap();
        forget(&state_dir).unwrap();
        assert!(!to.exists());
        fs::remove_dir_all(state_dir).unwrap();
    }

    #[test]
    fn no_program_is_put_where_others_may_write() {
        for open in ["", "bin"] {
            let state_dir = directory(&format!("open{open}"));
            fs::create_dir(state_dir.join("bin")).unwrap();
            fs::set_permissions(state_dir.join(open), Permissions::from_mode(0o775)).unwrap();
            let error = copy(Path::new("/proc/self/exe"), &program(&state_dir)).unwrap_err();
            assert!(error.to_string().contains("may write"), "{error}");
            fs::remove_dir_all(state_dir).unwrap();
        }
    }

    #[test]
    fn one_that_has_not_run_when_the_machine_started_is_not_relied_upon() {
        let directory = directory("ran");
        let unit = || Unit {
            units: Some(directory.clone()),
            state_dir: directory.clone(),
            run_dir: directory.join("run"),
            args: Vec::new(),
        };
        assert!(unit().install(&directory).unwrap());
        assert!(unit().install(&directory).unwrap());
        // The machine starts anew.
        fs::remove_dir_all(directory.join("run")).unwrap();
        assert!(!unit().install(&directory).unwrap());
        // Also where the unit went with it.
        fs::remove_file(directory.join(NAME)).unwrap();
        assert!(!unit().install(&directory).unwrap());
        mark(&directory.join("run")).unwrap();
        assert!(unit().install(&directory).unwrap());
        fs::remove_dir_all(directory).unwrap();
    }
}
