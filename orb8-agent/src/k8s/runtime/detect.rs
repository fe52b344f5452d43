//! Which container runtimes a node has, told by their sockets.

use std::{
    collections::HashSet,
    fs::FileType,
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// Where runtimes listen, those first that name pods by themselves. RKE2 listens where k3s does,
/// Talos where containerd does by itself.
const SOCKETS: [&str; 13] = [
    "/run/containerd/containerd.sock",
    "/var/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/var/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
    "/run/cri-dockerd.sock",
    "/var/run/cri-dockerd.sock",
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/podman/podman.sock",
    "/var/run/podman/podman.sock",
];

/// What there is of these below `root`, in order. One that is reached by two paths is there once:
/// `/var/run` leads to `/run`, except in containers.
pub(super) fn sockets(root: &Path) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    let paths = SOCKETS.iter().map(|path| root.join(path.trim_start_matches('/')));
    let there = paths.filter(|path| match path.metadata() {
        Ok(found) => found.file_type().is_socket() && seen.insert((found.dev(), found.ino())),
        Err(_) => false,
    });
    there.collect()
}

/// An error unless there is a socket at `path`. Connecting to something else is refused by the
/// kernel in words that say nothing.
pub(super) fn check(path: &Path) -> Result<(), String> {
    match path.metadata() {
        Ok(found) if found.file_type().is_socket() => Ok(()),
        Ok(found) => {
            let what = kind(found.file_type());
            Err(format!(
                "{} is a {what}, expected the socket of a container runtime",
                path.display()
            ))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("no socket {}", path.display()))
        }
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn kind(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        "directory"
    } else if file_type.is_file() {
        "file"
    } else {
        "device or pipe"
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::*;

    #[test]
    fn sockets_are_found_in_order_once_each_and_what_is_no_socket_is_not() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for dir in ["run/crio", "run/k3s/containerd", "run/containerd", "var"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        assert!(sockets(root.path()).is_empty());
        std::os::unix::fs::symlink("../run", at("var/run")).unwrap();
        let _k3s = UnixListener::bind(at("run/k3s/containerd/containerd.sock")).unwrap();
        let _crio = UnixListener::bind(at("run/crio/crio.sock")).unwrap();
        let _docker = UnixListener::bind(at("run/docker.sock")).unwrap();
        fs::write(at("run/containerd/containerd.sock"), "").unwrap();
        let expected =
            ["run/crio/crio.sock", "run/k3s/containerd/containerd.sock", "run/docker.sock"];
        assert_eq!(sockets(root.path()), expected.map(at));
    }

    #[test]
    fn what_is_no_socket_is_called_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert_eq!(check(&path), Err(format!("no socket {}", path.display())));
        fs::write(&path, "").unwrap();
        assert!(
            check(&path)
                .unwrap_err()
                .ends_with("is a file, expected the socket of a container runtime")
        );
        assert!(check(dir.path()).unwrap_err().contains("is a directory"));
        fs::remove_file(&path).unwrap();
        let _socket = UnixListener::bind(&path).unwrap();
        assert_eq!(check(&path), Ok(()));
    }
}
