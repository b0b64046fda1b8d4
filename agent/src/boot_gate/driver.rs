//! What kubelet calls: the identity and node services of CSI 1.x, and the registration of a plugin.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::body::Incoming;
use tokio::task::spawn_blocking;
use tonic::Status;

use super::{
    DRIVER, HeldPods,
    messages::{DriverInfo, Empty, NodeInfo, PluginInfo, Publish, RegistrationStatus, Unpublish},
    server::{Answer, Answers, unary},
    volume::{Target, published},
};

/// `csi.v1.Identity` and `csi.v1.Node`.
pub struct Driver {
    pub node: String,
    pub kubelet: PathBuf,
    pub held: Arc<HeldPods>,
}

impl Driver {
    /// Holds the pod, and gives it an empty directory.
    async fn publish(&self, request: &Publish) -> Result<Empty, Status> {
        let target = published(&self.kubelet, request)?;
        self.held.hold(&target.uid).await?;
        match fs::DirBuilder::new().mode(0o755).create(&target.path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && is_directory(&target.path) => {}
            Err(error) => return Err(failed("make", &target.path, &error)),
            Ok(()) => {}
        }
        tracing::debug!(uid = target.uid, "held until it is enrolled");
        Ok(Empty {})
    }

    /// Takes the directory back. The pod is held as long as it has a cgroup.
    async fn unpublish(&self, request: &Unpublish) -> Result<Empty, Status> {
        let target = Target::parse(&self.kubelet, &request.target_path)?;
        let path = target.path.clone();
        let removed = spawn_blocking(move || remove_directories(&path)).await;
        match removed.map_err(|error| Status::internal(error.to_string()))? {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &target.path, &error)),
            _ => Ok(Empty {}),
        }
    }
}

impl Answers for Driver {
    fn answer<'a>(&'a self, method: &'a str, request: http::Request<Incoming>) -> Answer<'a> {
        Box::pin(async move {
            match method {
                "/csi.v1.Identity/GetPluginInfo" => {
                    unary(request, |_: Empty| async {
                        let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
                        Ok(DriverInfo { name: DRIVER.to_owned(), vendor_version })
                    })
                    .await
                }
                // It has no further capability, and is ready whenever it answers.
                "/csi.v1.Identity/GetPluginCapabilities"
                | "/csi.v1.Identity/Probe"
                | "/csi.v1.Node/NodeGetCapabilities" => {
                    unary(request, |_: Empty| async { Ok(Empty {}) }).await
                }
                "/csi.v1.Node/NodeGetInfo" => {
                    unary(request, |_: Empty| async { Ok(NodeInfo { node_id: self.node.clone() }) }).await
                }
                "/csi.v1.Node/NodePublishVolume" => {
                    unary(request, |asked: Publish| async move { told(self.publish(&asked).await) }).await
                }
                "/csi.v1.Node/NodeUnpublishVolume" => {
                    unary(request, |asked: Unpublish| async move { told(self.unpublish(&asked).await) }).await
                }
                _ => Status::unimplemented("gate.orlop.dev has no such call").into_http(),
            }
        })
    }
}

/// `pluginregistration.Registration`.
pub struct Registration {
    /// Where the driver is.
    pub endpoint: PathBuf,
}

impl Answers for Registration {
    fn answer<'a>(&'a self, method: &'a str, request: http::Request<Incoming>) -> Answer<'a> {
        Box::pin(async move {
            match method {
                "/pluginregistration.Registration/GetInfo" => {
                    unary(request, |_: Empty| async {
                        Ok(PluginInfo {
                            r#type: "CSIPlugin".to_owned(),
                            name: DRIVER.to_owned(),
                            endpoint: self.endpoint.to_string_lossy().into_owned(),
                            supported_versions: vec!["1.0.0".to_owned()],
                        })
                    })
                    .await
                }
                "/pluginregistration.Registration/NotifyRegistrationStatus" => {
                    unary(request, |status: RegistrationStatus| async move {
                        if status.plugin_registered {
                            tracing::info!("kubelet knows the driver gate.orlop.dev");
                        } else {
                            tracing::error!(error = ?status.error, "kubelet does not take the driver gate.orlop.dev");
                        }
                        Ok(Empty {})
                    })
                    .await
                }
                _ => Status::unimplemented("there is no such call").into_http(),
            }
        })
    }
}

/// Says in the log too what kubelet says in an event of the pod.
fn told(answer: Result<Empty, Status>) -> Result<Empty, Status> {
    answer.inspect_err(|status| tracing::warn!(error = status.message(), "refused to kubelet"))
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Removes a directory with the directories in it, however deep: kubelet makes one for each `subPath`, which is the
/// pod's author's to choose. Nobody can write a file there.
fn remove_directories(path: &Path) -> io::Result<()> {
    let mut moved = 0_u64;
    while let Err(error) = fs::remove_dir(path) {
        if error.kind() != ErrorKind::DirectoryNotEmpty {
            return Err(error);
        }
        for child in fs::read_dir(path)? {
            let child = child?.path();
            match fs::remove_dir(&child) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
                removed => {
                    removed?;
                    continue;
                }
            }
            // Raised, so that no path gets longer than one may be.
            for below in fs::read_dir(&child)? {
                let below = below?.path();
                loop {
                    moved += 1;
                    match fs::rename(&below, path.join(format!("orlop-{moved}"))) {
                        // It has that name already.
                        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
                        renamed => break renamed?,
                    }
                }
            }
            fs::remove_dir(&child)?;
        }
    }
    Ok(())
}

fn failed(action: &str, path: &Path, error: &io::Error) -> Status {
    Status::internal(format!("cannot {action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;

    #[test]
    fn directories_are_removed_however_deep_and_files_are_not() {
        let root = env::temp_dir().join(format!("orlop-volume-{}", process::id()));
        let target = root.join("mount");
        for below in ["a/b", "a/c", "orlop-1/x", "orlop-2"] {
            fs::create_dir_all(target.join(below)).unwrap();
        }
        // Deeper than a path is long, as who has the directory open can make it.
        for _ in 0..5000 {
            fs::create_dir(root.join("above")).unwrap();
            fs::rename(target.join("a"), root.join("above/a")).unwrap();
            fs::rename(root.join("above"), target.join("a")).unwrap();
        }
        remove_directories(&target).unwrap();
        assert!(!target.exists());
        assert_eq!(remove_directories(&target).unwrap_err().kind(), ErrorKind::NotFound);
        fs::create_dir(&target).unwrap();
        fs::write(target.join("file"), "").unwrap();
        assert_eq!(remove_directories(&target).unwrap_err().kind(), ErrorKind::NotADirectory);
        assert!(target.join("file").exists());
        fs::remove_dir_all(root).unwrap();
    }
}
