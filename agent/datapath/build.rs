//! Builds the eBPF object and hands its path to `src/object.rs`.
//!
//! Two toolchains will do: Debian's `rustc-web` with `libstd-rust-web-dev-bpf`, or a rustup nightly
//! with `rust-src`; both need `bpf-linker`. Without one the crate still builds, for work on everything
//! else, and `orlop node` says what is missing. `cargo xtask setup` installs the first.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

enum Toolchain {
    /// `core` comes prebuilt.
    Debian,
    /// `core` is built from `rust-src`.
    Nightly,
}

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../..");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    for input in ["ebpf/src", "ebpf/Cargo.toml", "ebpf/Cargo.lock", "ebpf/common/src"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    let object = out.join("orlop-ebpf.o");
    let wanted = env::var("ORLOP_EBPF").unwrap_or_default();
    match toolchain().filter(|_| wanted != "skip") {
        Some(toolchain) => build(&toolchain, &root.join("ebpf"), &out, &object),
        None if wanted == "required" => {
            fail("no eBPF toolchain; `cargo xtask setup` installs one");
        }
        None if wanted == "skip" => fs::write(&object, []).expect("OUT_DIR is writable"),
        None => {
            println!("cargo::warning=no eBPF toolchain: `orlop node` will not run (see `cargo xtask setup`)");
            // A file that is never there makes cargo look again next time.
            println!("cargo::rerun-if-changed={}", out.join("toolchain-was-missing").display());
            fs::write(&object, []).expect("OUT_DIR is writable");
        }
    }
    println!("cargo::rustc-env=ORLOP_EBPF_OBJECT={}", object.display());
}

fn build(toolchain: &Toolchain, ebpf: &Path, out: &Path, object: &Path) {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let mut cargo = match toolchain {
        Toolchain::Debian => {
            let mut cargo = Command::new(env::var("CARGO").expect("cargo sets it"));
            cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1").arg("build");
            cargo
        }
        Toolchain::Nightly => {
            let mut cargo = Command::new("rustup");
            cargo.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]).env_remove("RUSTC");
            cargo
        }
    };
    let mut flags = vec![
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "--cfg".to_owned(),
        format!("bpf_target_arch=\"{arch}\""),
    ];
    // BTF names the lines of the source: wherever that is, the object is the same.
    let root = ebpf.parent().and_then(|root| root.canonicalize().ok());
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    for (path, name) in [(root, "/orlop"), (home, "/cargo")] {
        flags.extend(path.map(|path| format!("--remap-path-prefix={}={name}", path.display())));
    }
    let status = cargo
        .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(out.join("ebpf"))
        .current_dir(ebpf)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .status()
        .expect("cargo runs");
    if !status.success() {
        fail("the eBPF programs did not build; see above");
    }
    fs::copy(out.join("ebpf").join(TARGET).join("release/orlop-ebpf"), object).expect("cargo built it");
}

/// Ends the build without a backtrace, which would only hide the message.
fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    process::exit(1)
}

fn toolchain() -> Option<Toolchain> {
    if !succeeds(Command::new(linker()).arg("--version")) {
        return None;
    }
    if has_core(Command::new(DEBIAN_RUSTC).args(["--print", "target-libdir", "--target", TARGET])) {
        return Some(Toolchain::Debian);
    }
    let source = output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
    let source = Path::new(source.trim()).join("lib/rustlib/src/rust/library/core");
    source.is_dir().then_some(Toolchain::Nightly)
}

fn has_core(print_libdir: &mut Command) -> bool {
    let Some(directory) = output(print_libdir) else { return false };
    let Ok(entries) = fs::read_dir(directory.trim()) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// `cargo install` puts it beside cargo, which need not be on the PATH of whoever builds.
fn linker() -> PathBuf {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    match home.map(|home| home.join("bin/bpf-linker")) {
        Some(linker) if linker.is_file() => linker,
        _ => PathBuf::from("bpf-linker"),
    }
}

fn succeeds(command: &mut Command) -> bool {
    output(command).is_some()
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.env_remove("RUSTC").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
