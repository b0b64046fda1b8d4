//! The unit of systemd's that runs `orlop gate` when the node starts.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::cli::NodeArguments;

const NAME: &str = "orlop-gate.service";
/// What makes it part of the node's start, as `systemctl enable` does.
const WANTED: &str = "multi-user.target.wants";

/// Has `orlop gate` run when the node starts, or not any more, as the arguments say. Says whether it will: where that can't
/// be had, all else is as it is without.
pub fn renew(arguments: &NodeArguments) -> anyhow::Result<bool> {
    // Nothing is kept in --state-dir else.
    if !arguments.world.kube {
        return Ok(false);
    }
    let Some(units) = &arguments.gate.boot_gate_unit else {
        return forget(&arguments.place.state_dir).map(|()| false);
    };
    let installed = install(units, arguments);
    if let Err(error) = &installed {
        let error = format!("{error:#}");
        tracing::error!(error, "after a reboot, pods without a volume of gate.orlop.dev are not held");
    }
    Ok(installed.is_ok())
}

/// Writes the unit to `units`, and the program that it runs, this one, to the node's disk.
fn install(units: &Path, arguments: &NodeArguments) -> anyhow::Result<()> {
    let program = program(&arguments.place.state_dir);
    copy(Path::new("/proc/self/exe"), &program)
        .with_context(|| format!("cannot copy this program to {}", program.display()))?;
    let mut args = arguments.place.to_args();
    args.push(format!("--kubelet-dir={}", arguments.gate.kubelet_dir.display()));
    args.extend(arguments.names.to_args());
    let unit = text(&program, &args)?;
    enable(units, &unit).with_context(|| {
        format!("cannot write {NAME} to {}; is it where systemd has its units?", units.display())
    })
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

fn program(state_dir: &Path) -> PathBuf {
    state_dir.join("bin/orlop")
}

/// kubelet starts once it is ready, or has failed. Without the program it does nothing.
fn text(program: &Path, args: &[String]) -> anyhow::Result<String> {
    let program = program.to_str().context("--state-dir is not UTF-8")?;
    let command = args.iter().map(|arg| quoted(arg));
    let command = [quoted(program)].into_iter().chain(command).collect::<anyhow::Result<Vec<_>>>()?.join(" ");
    // Of a path in a condition, `%` alone has a meaning.
    let condition = program.replace('%', "%%");
    Ok(format!(
        "# Written by `orlop node --boot-gate-unit`.\n\
         [Unit]\n\
         Description=Holds the pods of the Orlop mesh until the node's agent does\n\
         ConditionPathExists={condition}\n\
         Before=kubelet.service k3s.service k3s-agent.service rke2-server.service rke2-agent.service\n\
         \n\
         [Service]\n\
         Type=notify\n\
         ExecStart={command}\n\
         TimeoutStartSec=30s\n\
         Restart=on-failure\n\
         RestartSec=1s\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    ))
}

/// One word of a command of systemd's (systemd.service(5), "Command lines").
fn quoted(word: &str) -> anyhow::Result<String> {
    anyhow::ensure!(!word.contains(char::is_control), "{word:?} can't be an argument of a unit of systemd's");
    let mut quoted = String::from("\"");
    for c in word.chars() {
        match c {
            '%' => quoted.push_str("%%"),
            '$' => quoted.push_str("$$"),
            '"' | '\\' => quoted.extend(['\\', c]),
            c => quoted.push(c),
        }
    }
    Ok(quoted + "\"")
}

fn enable(units: &Path, unit: &str) -> io::Result<()> {
    let path = units.join(NAME);
    if fs::read_to_string(&path).ok().as_deref() != Some(unit) {
        replace(&path, |file| io::Write::write_all(file, unit.as_bytes()))?;
    }
    let wanted = units.join(WANTED);
    fs::create_dir_all(&wanted)?;
    match symlink(Path::new("..").join(NAME), wanted.join(NAME)) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Copies a program, unless it is there.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    if let Ok(mut there) = File::open(to)
        && is_same(&mut source, &mut there)?
    {
        return Ok(());
    }
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    let mut source = File::open(from)?;
    replace(to, |file| {
        io::copy(&mut source, file)?;
        file.set_permissions(Permissions::from_mode(0o755))
    })
}

/// Puts a file in the place of another, whole or not at all, also if the machine loses power meanwhile.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    write(&mut file)?;
    file.sync_all()?;
    fs::rename(new, path)
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

    #[test]
    fn what_means_something_to_systemd_is_taken_as_it_is() {
        let unit = text(Path::new("/var/lib/50%/bin/orlop"), &["--node=a b".to_owned()]).unwrap();
        assert!(unit.contains("\nConditionPathExists=/var/lib/50%%/bin/orlop\n"), "{unit}");
        assert!(unit.contains("\nExecStart=\"/var/lib/50%%/bin/orlop\" \"--node=a b\"\n"), "{unit}");
        assert_eq!(quoted(r#"a"b\c$d%e"#).unwrap(), r#""a\"b\\c$$d%%e""#);
        assert!(text(Path::new("/x"), &["--node=a\nExecStart=/bin/sh".to_owned()]).is_err());
    }

    #[test]
    fn a_program_is_copied_where_it_differs_and_forgotten_again() {
        let state_dir = env::temp_dir().join(format!("orlop-unit-{}", process::id()));
        fs::create_dir_all(&state_dir).unwrap();
        let (from, to) = (state_dir.join("from"), program(&state_dir));
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&to).unwrap());
        let long = "x".repeat(40_000);
        for content in [long.clone(), format!("y{long}"), long.replace('x', "z")] {
            fs::write(&from, &content).unwrap();
            copy(&from, &to).unwrap();
            assert_eq!(fs::read_to_string(&to).unwrap(), content);
            assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o755);
            let before = inode();
            copy(&from, &to).unwrap();
            assert_eq!(inode(), before, "it was there");
        }
        forget(&state_dir).unwrap();
        forget(&state_dir).unwrap();
        assert!(!to.exists());
        fs::remove_dir_all(state_dir).unwrap();
    }
}
