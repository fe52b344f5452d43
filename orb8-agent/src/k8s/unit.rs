//! What to call a process of the node itself: the systemd unit that a cgroup path shows.

/// Types of units that have cgroups (systemd.unit(5)).
const TYPES: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

/// The innermost unit of a cgroup path; where it shows none, the path itself.
///
/// Cgroups that a unit makes below its own are part of it. Units of a user's own manager have the
/// manager before them, as in `user@1000.service/backup.service`: another user's, or the system's,
/// may have the same name.
#[must_use]
pub fn unit_of(path: &str) -> String {
    // The kernel says so in /proc/<pid>/cgroup when the directory was removed under a process.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let mut manager = None;
    let mut unit = None;
    for component in path.split('/').filter(|component| is_unit(component)) {
        manager = match unit {
            Some(outer) if is_manager(outer) => Some(outer),
            _ => manager,
        };
        unit = Some(component);
    }
    match (manager, unit) {
        (Some(manager), Some(unit)) => format!("{manager}/{unit}"),
        (None, Some(unit)) => unit.to_owned(),
        (_, None) => path.to_owned(),
    }
}

fn is_unit(component: &str) -> bool {
    TYPES.iter().any(|suffix| component.strip_suffix(suffix).is_some_and(|name| !name.is_empty()))
}

/// `user@<uid>.service` runs a systemd of its own.
fn is_manager(unit: &str) -> bool {
    unit.starts_with("user@") && unit.ends_with(".service")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_innermost_unit_names_a_process_of_the_node() {
        let cases = [
            ("/system.slice/sshd.service", "sshd.service"),
            ("/system.slice/sshd.service/worker", "sshd.service"),
            ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
            ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/backup.service",
                "user@1000.service/backup.service",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/init.scope",
                "user@1000.service/init.scope",
            ),
            ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service"),
            ("/system.slice", "system.slice"),
            ("/init.scope", "init.scope"),
            ("/system.slice/cups.socket", "cups.socket"),
            ("/system.slice/old.service (deleted)", "old.service"),
            ("/../../system.slice/kubelet.service", "kubelet.service"),
            ("/", "/"),
            ("/kubepods/besteffort", "/kubepods/besteffort"),
            ("/.service", "/.service"),
        ];
        for (path, unit) in cases {
            assert_eq!(unit_of(path), unit, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_has_a_name_that_is_part_of_it(path in "(/[a-z@.0-9]{0,12}){1,6}") {
            let unit = unit_of(&path);
            prop_assert!(!unit.is_empty());
            for part in unit.split('/') {
                prop_assert!(path.contains(part));
            }
        }

        #[test]
        fn what_is_made_below_a_unit_is_the_units(below in "(/[a-z0-9-]{1,12}){0,4}") {
            let path = format!("/system.slice/sshd.service{below}");
            prop_assert_eq!(unit_of(&path), "sshd.service");
        }
    }
}
