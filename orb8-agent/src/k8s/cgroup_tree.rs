//! From a cgroup id, as the kernel reports it, to the cgroup's path and owner.
//!
//! The id is the inode of the cgroup's directory in the version 2 hierarchy. The kernel has no call
//! that turns one into a path, so the tree is walked and remembered.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs, io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::cgroup::{self, CgroupIdentity};

/// Two walks are at least this far apart, however many unknown ids arrive.
const RESCAN_INTERVAL: Duration = Duration::from_secs(1);
/// Records of a removed cgroup still arrive this long.
const TOMBSTONE: Duration = Duration::from_secs(60);
/// An id that a walk did not find causes no other walk for this long. Without it, packets of one
/// socket whose cgroup is gone would keep the walks going.
const UNKNOWN: Duration = Duration::from_secs(10);
/// A list of all cgroups may be this old.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);
/// More unknown ids than this are forgotten, which costs walks and nothing else.
const UNKNOWN_MAX: usize = 4_096;

/// Where the version 2 hierarchy is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMount {
    /// The directory, such as `/sys/fs/cgroup` or, on hybrid hosts, `/sys/fs/cgroup/unified`.
    pub mount_point: PathBuf,
    /// The path, within the hierarchy, of the cgroup that is mounted there; `/` is the root.
    pub root: String,
}

impl CgroupMount {
    /// Picks the version 2 mount from the content of `/proc/self/mountinfo`: the one that shows
    /// most of the hierarchy.
    #[must_use]
    pub fn parse(mountinfo: &str) -> Option<Self> {
        let mounts = mountinfo.lines().filter_map(|line| {
            // id parent major:minor root mount-point options [optional…] - type source options
            let (mount, filesystem) = line.split_once(" - ")?;
            if filesystem.split(' ').next()? != "cgroup2" {
                return None;
            }
            let mut fields = mount.split(' ').skip(3);
            let root = unescape(fields.next()?);
            let mount_point = PathBuf::from(unescape(fields.next()?));
            Some(Self { mount_point, root })
        });
        mounts.min_by_key(|mount| {
            // `/..` is above the root of our cgroup namespace, `/a` is below it.
            let above = mount.root.matches("/..").count();
            let below = mount.root.matches('/').count() - above;
            let below = if mount.root == "/" { 0 } else { below };
            (below, usize::MAX - above, mount.mount_point.components().count())
        })
    }

    /// The directory of a cgroup; None where this mount does not show it.
    #[must_use]
    pub fn directory(&self, path: &str) -> Option<PathBuf> {
        let below = path.strip_prefix(self.root.trim_end_matches('/'))?;
        let below = below.strip_prefix('/').or_else(|| below.is_empty().then_some(""))?;
        Some(self.mount_point.join(below))
    }

    /// The path of a directory below the mount point, as `/proc/<pid>/cgroup` shows it.
    fn path_of(&self, below: &Path) -> String {
        let below = below.to_string_lossy();
        match (self.root.trim_end_matches('/'), &*below) {
            ("", "") => "/".to_owned(),
            (root, "") => root.to_owned(),
            (root, below) => format!("{root}/{below}"),
        }
    }
}

/// Undoes mountinfo's `\040` for a space, and likewise tab, newline and backslash.
fn unescape(field: &str) -> String {
    let mut pieces = field.split('\\');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => {
                text.push(char::from(code));
                text.push_str(&piece[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(piece);
            }
        }
    }
    text
}

/// A cgroup that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCgroup {
    /// Its path in the hierarchy.
    pub path: Arc<str>,
    /// The pod and container that it, or the nearest ancestor of a pod or container, belongs to.
    /// None: it is the node's own.
    pub identity: Option<CgroupIdentity>,
}

/// The version 2 hierarchy, as far as it has been needed.
#[derive(Debug)]
pub struct CgroupTree {
    mount: CgroupMount,
    known: HashMap<u64, Node>,
    /// Ids that a walk did not find, and when.
    unknown: HashMap<u64, Instant>,
    walked: Option<Instant>,
    /// What is gone, in the order in which it went.
    gone: VecDeque<(Instant, u64)>,
}

#[derive(Debug)]
struct Node {
    cgroup: FoundCgroup,
    /// When the kernel said so, or a walk first missed it.
    gone: Option<Instant>,
}

impl CgroupTree {
    /// The tree of this machine. Nothing is read but the mount table.
    pub fn open() -> io::Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = CgroupMount::parse(&mountinfo).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "/proc/self/mountinfo: no cgroup2 mount, expected one such as /sys/fs/cgroup",
            )
        })?;
        Ok(Self::at(mount))
    }

    /// The tree below a given mount.
    #[must_use]
    pub fn at(mount: CgroupMount) -> Self {
        Self {
            mount,
            known: HashMap::new(),
            unknown: HashMap::new(),
            walked: None,
            gone: VecDeque::new(),
        }
    }

    /// Where the tree is mounted.
    #[must_use]
    pub fn mount(&self) -> &CgroupMount {
        &self.mount
    }

    /// Finds the cgroup with this id. An id not seen before may walk the tree, at most once a second. A removed cgroup is found
    /// for another minute after it was missed.
    pub fn identify(&mut self, cgroup_id: u64, now: Instant) -> Option<FoundCgroup> {
        if !self.known.contains_key(&cgroup_id) && self.may_walk(cgroup_id, now) {
            self.walk(now);
            if !self.known.contains_key(&cgroup_id) {
                if self.unknown.len() >= UNKNOWN_MAX {
                    self.unknown.clear();
                }
                self.unknown.insert(cgroup_id, now);
            }
        }
        Some(self.known.get(&cgroup_id)?.cgroup.clone())
    }

    /// Walks the tree, unless that was done a moment ago.
    pub fn refresh(&mut self, now: Instant) {
        let recent = |walked| now.saturating_duration_since(walked) < REFRESH_INTERVAL;
        if !self.walked.is_some_and(recent) {
            self.walk(now);
        }
    }

    fn may_walk(&self, cgroup_id: u64, now: Instant) -> bool {
        let over = |since: &Instant, limit| now.saturating_duration_since(*since) >= limit;
        self.walked.is_none_or(|walked| over(&walked, RESCAN_INTERVAL))
            && self.unknown.get(&cgroup_id).is_none_or(|asked| over(asked, UNKNOWN))
    }

    /// Reads the whole tree, which takes tens of milliseconds on a full node.
    pub fn walk(&mut self, now: Instant) {
        self.walked = Some(now);
        self.unknown.retain(|_, asked| now.saturating_duration_since(*asked) < UNKNOWN);
        let mut there = Vec::new();
        for (id, node) in self.known.iter_mut().filter(|(_, node)| node.gone.is_none()) {
            node.gone = Some(now);
            there.push(*id);
        }
        if let Ok(root) = fs::metadata(&self.mount.mount_point) {
            self.found(root.ino(), Path::new(""));
        }
        let mut pending = vec![PathBuf::new()];
        while let Some(below) = pending.pop() {
            // A directory that vanishes under the walk is simply not there.
            let Ok(entries) = fs::read_dir(self.mount.mount_point.join(&below)) else { continue };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let child = below.join(entry.file_name());
                    self.found(entry.ino(), &child);
                    pending.push(child);
                }
            }
        }
        let known = &self.known;
        let missed = |id: &u64| known.get(id).is_some_and(|node| node.gone.is_some());
        self.gone.extend(there.into_iter().filter(missed).map(|id| (now, id)));
        self.forget(now);
    }

    /// A cgroup was made; `path` is from the root of the hierarchy.
    pub fn born(&mut self, id: u64, path: &str) {
        let cgroup = FoundCgroup { path: path.into(), identity: cgroup::parse(path) };
        self.known.insert(id, Node { cgroup, gone: None });
        self.unknown.remove(&id);
    }

    /// A cgroup was removed.
    pub fn removed(&mut self, id: u64, now: Instant) {
        if let Some(node) = self.known.get_mut(&id)
            && node.gone.is_none()
        {
            node.gone = Some(now);
            self.gone.push_back((now, id));
        }
    }

    /// The cgroups that were removed of late.
    #[must_use]
    pub fn gone(&self) -> HashSet<u64> {
        let is_gone = |id: &u64| self.known.get(id).is_some_and(|node| node.gone.is_some());
        self.gone.iter().map(|(_, id)| *id).filter(is_gone).collect()
    }

    /// Drops what was removed long ago.
    pub fn forget(&mut self, now: Instant) {
        let over = |since: Instant| now.saturating_duration_since(since) >= TOMBSTONE;
        while let Some((_, id)) = self.gone.pop_front_if(|(since, _)| over(*since)) {
            if self.known.get(&id).is_some_and(|node| node.gone.is_some_and(over)) {
                self.known.remove(&id);
            }
        }
    }

    /// Calls `visit` with every cgroup that exists, as far as is known.
    pub fn for_each(&self, mut visit: impl FnMut(u64, &FoundCgroup)) {
        let there = self.known.iter().filter(|(_, node)| node.gone.is_none());
        there.for_each(|(id, node)| visit(*id, &node.cgroup));
    }

    fn found(&mut self, id: u64, below: &Path) {
        let path = self.mount.path_of(below);
        if let Some(node) = self.known.get_mut(&id)
            && *node.cgroup.path == *path
        {
            node.gone = None;
            return;
        }
        // New, or the inode of a removed directory was given to another one.
        let identity = cgroup::parse(&path);
        let cgroup = FoundCgroup { path: path.into(), identity };
        self.known.insert(id, Node { cgroup, gone: None });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";

    #[test]
    fn the_mount_that_shows_most_is_taken() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let mount = CgroupMount::parse(hybrid).unwrap();
        assert_eq!(mount.mount_point, Path::new("/sys/fs/cgroup/unified"));
        let container = "10 1 0:26 /../../.. /sys/fs/cgroup ro shared:9 master:2 - cgroup2 cgroup rw\n\
            11 1 0:26 /../.. /host\\040sys/cgroup rw - cgroup2 cgroup rw\n\
            12 1 0:26 /sub /mnt rw - cgroup2 cgroup rw\n";
        let mount = CgroupMount::parse(container).unwrap();
        assert_eq!(
            (mount.root.as_str(), mount.mount_point.to_str()),
            ("/../../..", Some("/sys/fs/cgroup"))
        );
        let only = CgroupMount::parse(container.lines().nth(1).unwrap()).unwrap();
        assert_eq!(only.mount_point, Path::new("/host sys/cgroup"));
        assert_eq!(CgroupMount::parse("1 2 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }

    /// A tree in a directory: ids are inodes there too.
    fn tree(root: &str) -> (tempfile::TempDir, CgroupTree) {
        let dir = tempfile::tempdir().unwrap();
        let mount = CgroupMount { mount_point: dir.path().to_owned(), root: root.to_owned() };
        (dir, CgroupTree::at(mount))
    }

    fn make(dir: &Path, path: &str) -> u64 {
        fs::create_dir_all(dir.join(path)).unwrap();
        fs::metadata(dir.join(path)).unwrap().ino()
    }

    #[test]
    fn an_id_is_found_with_its_nearest_owner() {
        let (dir, mut tree) = tree("/");
        let container = "7".repeat(64);
        let child =
            make(dir.path(), &format!("kubepods/burstable/pod{UID}/{container}/init.scope"));
        let found = tree.identify(child, Instant::now()).unwrap();
        assert!(found.path.starts_with("/kubepods/burstable/pod"));
        let identity = found.identity.unwrap();
        assert_eq!(identity.pod_uid.unwrap().to_string(), UID);
        assert_eq!(identity.container_id.unwrap().to_string(), container);
        let root = fs::metadata(dir.path()).unwrap().ino();
        let found = tree.identify(root, Instant::now()).unwrap();
        assert_eq!((&*found.path, found.identity), ("/", None));
    }

    #[test]
    fn the_directory_of_a_path_is_below_the_mount_that_shows_it() {
        let mount = |root: &str| CgroupMount { mount_point: "/m".into(), root: root.into() };
        for (root, path, dir) in [
            ("/", "/", Some("/m")),
            ("/", "/a/b", Some("/m/a/b")),
            ("/sub", "/sub", Some("/m")),
            ("/sub", "/sub/a", Some("/m/a")),
            ("/../..", "/../../a", Some("/m/a")),
            ("/sub", "/subway", None),
            ("/sub", "/other", None),
        ] {
            assert_eq!(mount(root).directory(path).as_deref(), dir.map(Path::new), "{root} {path}");
        }
    }

    #[test]
    fn every_cgroup_that_exists_is_listed() {
        let (dir, mut tree) = tree("/");
        let start = Instant::now();
        let (a, b) = (make(dir.path(), "a"), make(dir.path(), "a/b"));
        let root = fs::metadata(dir.path()).unwrap().ino();
        let list = |tree: &CgroupTree| {
            let mut ids = Vec::new();
            tree.for_each(|id, _| ids.push(id));
            ids.sort_unstable();
            ids
        };
        tree.refresh(start);
        let mut all = [root, a, b];
        all.sort_unstable();
        assert_eq!(list(&tree), all);
        fs::remove_dir(dir.path().join("a/b")).unwrap();
        tree.refresh(start + REFRESH_INTERVAL / 2);
        assert_eq!(list(&tree).len(), 3, "it was walked a moment ago");
        tree.refresh(start + REFRESH_INTERVAL);
        assert_eq!(list(&tree).len(), 2);
        assert!(tree.identify(b, start + REFRESH_INTERVAL).is_some(), "records of it come late");
    }

    #[test]
    fn the_mounts_own_root_is_part_of_every_path() {
        let (dir, mut tree) = tree(&format!("/kubepods/pod{UID}"));
        let container = make(dir.path(), &"7".repeat(64));
        let found = tree.identify(container, Instant::now()).unwrap();
        assert_eq!(found.identity.unwrap().pod_uid.unwrap().to_string(), UID);
    }

    #[test]
    fn a_new_cgroup_is_found_a_second_after_the_last_walk() {
        let (dir, mut tree) = tree("/");
        let start = Instant::now();
        assert_eq!(tree.identify(1, start), None);
        let id = make(dir.path(), "system.slice");
        let soon = start + RESCAN_INTERVAL / 2;
        assert_eq!(tree.identify(id, soon), None, "no second walk within the second");
        let later = start + RESCAN_INTERVAL;
        assert_eq!(&*tree.identify(id, later).unwrap().path, "/system.slice");
    }

    #[test]
    fn an_id_that_nobody_has_does_not_keep_the_walks_going() {
        let (dir, mut tree) = tree("/");
        let start = Instant::now();
        assert_eq!(tree.identify(1, start), None);
        let id = make(dir.path(), "late");
        let later = start + RESCAN_INTERVAL * 2;
        assert_eq!(tree.identify(1, later), None);
        assert!(!tree.known.contains_key(&id), "asking again for 1 walked the tree");
        assert!(tree.identify(id, later).is_some());
    }

    #[test]
    fn a_removed_cgroup_is_remembered_for_a_minute() {
        let (dir, mut tree) = tree("/");
        let id = make(dir.path(), &format!("kubepods/pod{UID}"));
        let start = Instant::now();
        assert!(tree.identify(id, start).is_some());
        fs::remove_dir(dir.path().join(format!("kubepods/pod{UID}"))).unwrap();
        let missed = start + Duration::from_secs(2);
        tree.identify(1, missed);
        assert!(tree.identify(id, missed + TOMBSTONE / 2).unwrap().identity.is_some());
        tree.identify(2, missed + TOMBSTONE);
        assert_eq!(tree.identify(id, missed + TOMBSTONE), None);
    }

    #[test]
    fn ids_are_the_inodes_of_the_real_hierarchy() {
        let mut tree = CgroupTree::open().unwrap();
        let name = format!("orb8-test-tree-{}", std::process::id());
        let dir = tree.mount().mount_point.join(&name);
        fs::create_dir(&dir).expect("making a cgroup takes root");
        let id = fs::metadata(&dir).unwrap().ino();
        let found = tree.identify(id, Instant::now());
        fs::remove_dir(&dir).unwrap();
        let found = found.unwrap();
        assert!(found.path.ends_with(&format!("/{name}")) && found.identity.is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_mount_tables_never_panic(text in any::<String>(), field in "[\\\\0-9a-zé]{0,12}") {
            let _ = CgroupMount::parse(&text);
            let _ = CgroupMount::parse(&format!("1 1 0:1 {field} /{field} rw - cgroup2 none rw"));
        }
    }
}
