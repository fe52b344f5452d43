//! Accounts: whose they become, what is closed, and that no workload loses anything by it.

use proptest::prelude::*;

use super::*;
use crate::{aggregator::slice_start_ns, signals::network::metrics::NetworkMetrics};

fn identity(pod_uid: &str, container_id: &str, pod_name: &str) -> Arc<Identity> {
    let empty: Arc<str> = "".into();
    Arc::new(Identity {
        pod_uid: pod_uid.into(),
        namespace: Arc::clone(&empty),
        pod_name: pod_name.into(),
        container_id: container_id.into(),
        container: empty,
        qos: None,
        workload: None,
        unit: "".into(),
    })
}

#[test]
fn an_account_that_turns_out_to_be_anothers_goes_to_that_one_whole() {
    let mut accounts = Accounts::new(Ledger::default());
    let mut book = |identity: &Arc<Identity>, bytes, last_ns, interface: &str| {
        let by = AttributedBy::Veth;
        let attribution = Attribution { identity: Some(Arc::clone(identity)), by };
        let counts = Counts { bytes, packets: 1, ..Counts::default() };
        let traffic = Traffic::of(Direction::Egress, counts);
        accounts.book(&attribution, traffic, last_ns, &interface.into());
    };
    let (bare, named) = (identity("hash", "", "hash"), identity("uid", "", "proxy"));
    let (other, renamed) = (identity("2", "", "2"), identity("2", "", "web"));
    book(&bare, 10, 5, "veth1");
    book(&named, 1, 7, "veth2");
    book(&other, 100, 9, "veth3");
    accounts.rename(|identity| match &*identity.pod_uid {
        "hash" => Some(Arc::clone(&named)),
        "2" => Some(Arc::clone(&renamed)),
        _ => None,
    });
    let mut all: Vec<_> = accounts.iter().collect();
    all.sort_by_key(|account| account.last_ns);
    let told = all.iter().map(|a| (&*a.identity.as_ref().unwrap().pod_name, a.total.egress.bytes));
    assert_eq!(told.collect::<Vec<_>>(), [("proxy", 11), ("web", 100)]);
    assert_eq!((all[0].window.sum(0, 9).unwrap().egress.bytes, all[0].interfaces.len()), (11, 2));
}

#[test]
fn who_is_gone_makes_room_unless_it_was_heard_of_since() {
    let mut accounts = Accounts::new(Ledger::default());
    let mut gone = HashMap::new();
    for (uid, last_ns) in [("went", 5), ("came back", 7), ("lives", 5)] {
        let attribution =
            Attribution { identity: Some(identity(uid, "", uid)), by: AttributedBy::Veth };
        accounts.book(&attribution, bytes(10, Direction::Egress), last_ns, &"veth1".into());
        if uid != "lives" {
            gone.insert(Owner::Named(uid.into()), 6);
        }
    }
    assert_eq!(accounts.forget_gone(&gone), 1);
    let mut left: Vec<_> =
        accounts.iter().map(|a| &*a.identity.as_ref().unwrap().pod_uid).collect();
    left.sort_unstable();
    assert_eq!(left, ["came back", "lives"]);
}

/// A pod of one of three workloads in two namespaces, or one without names.
fn pod(uid: u8, named: bool) -> Arc<Identity> {
    let named_identity = Identity {
        namespace: format!("ns-{}", uid % 2).into(),
        workload: (!uid.is_multiple_of(4)).then(|| format!("Deployment/{}", uid % 3).into()),
        ..(*identity(&uid.to_string(), "", &format!("pod-{}", uid % 8))).clone()
    };
    if named { Arc::new(named_identity) } else { identity(&uid.to_string(), "", "") }
}

fn bytes(counts: u64, direction: Direction) -> Traffic {
    let counts = Counts { bytes: counts, packets: 1, ..Counts::default() };
    Traffic::of(direction, counts)
}

type Told = HashMap<(String, String), [u64; 4]>;

fn told(accounts: &mut Accounts) -> Told {
    let all = accounts.workloads().into_iter().map(|w| {
        let sums = [w.ingress_bytes, w.egress_bytes, w.ingress_packets, w.egress_packets];
        ((w.namespace, w.workload), sums)
    });
    all.collect()
}

#[derive(Clone, Debug)]
enum Act {
    /// Of a pod, with its names or under its UID.
    Book(u8, bool, u32),
    /// Traffic of a unit, of the node, or of nobody.
    BookOther(u8, u32),
    /// Everybody gets the names, but every third pod; some turn out to be others.
    Name,
    Pass(u32),
    Ask,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (any::<u8>(), any::<bool>(), any::<u32>()).prop_map(|(p, n, b)| Act::Book(p, n, b)),
        2 => (any::<u8>(), any::<u32>()).prop_map(|(w, b)| Act::BookOther(w, b)),
        1 => Just(Act::Name),
        1 => (1_u32..30).prop_map(Act::Pass),
        2 => Just(Act::Ask),
    ];
    prop::collection::vec(act, 0..300)
}

proptest! {
    #[test]
    fn workloads_never_fall_and_have_together_all_that_was_booked(acts in acts()) {
        let mut accounts = Accounts::new(Ledger::default());
        let (mut slice, mut booked, mut before) = (100, [0_u64; 2], Told::new());
        for act in acts.into_iter().chain([Act::Ask]) {
            let at = slice_start_ns(slice);
            match act {
                Act::Book(uid, named, size) => {
                    let attribution =
                        Attribution { identity: Some(pod(uid, named)), by: AttributedBy::Veth };
                    let traffic = bytes(size.into(), Direction::Egress);
                    accounts.book(&attribution, traffic, at, &"veth".into());
                    booked[1] += u64::from(size);
                }
                Act::BookOther(who, size) => {
                    let mut unit = (*identity("", "", "")).clone();
                    unit.unit = format!("unit-{who}").into();
                    let (identity, by) = match who % 3 {
                        0 => (Some(Arc::new(unit)), AttributedBy::SocketCgroup),
                        1 => (None, AttributedBy::Host),
                        _ => (None, AttributedBy::None),
                    };
                    let traffic = bytes(size.into(), Direction::Ingress);
                    accounts.book(&Attribution { identity, by }, traffic, at, &"eth0".into());
                    booked[0] += u64::from(size);
                }
                Act::Name => accounts.rename(|identity| {
                    let uid: u8 = identity.pod_uid.parse().ok()?;
                    // As a static pod's hash is its mirror's UID by the names.
                    let uid = if uid > 240 { uid - 240 } else { uid };
                    (uid % 3 > 0).then(|| pod(uid, true))
                }),
                Act::Pass(slices) => {
                    slice += slices;
                    accounts.forget(slice.saturating_sub(20));
                }
                Act::Ask => {
                    let now = told(&mut accounts);
                    for (workload, sums) in &before {
                        let rose = now[workload].iter().zip(sums).all(|(now, then)| now >= then);
                        prop_assert!(rose, "{workload:?}: {sums:?}, then {:?}", now[workload]);
                    }
                    let sum = |of: usize| now.values().map(|sums| sums[of]).sum::<u64>();
                    prop_assert_eq!([sum(0), sum(1)], booked);
                    before = now;
                }
            }
        }
    }
}

#[test]
fn what_was_not_told_before_its_name_came_is_the_workloads_and_what_was_told_stays() {
    let mut accounts = Accounts::new(Ledger::default());
    let book = |accounts: &mut Accounts, named, size| {
        let attribution = Attribution { identity: Some(pod(1, named)), by: AttributedBy::Veth };
        accounts.book(&attribution, bytes(size, Direction::Egress), 0, &"veth".into());
    };
    let nobodys = (String::new(), String::new());
    let its = ("ns-1".to_owned(), "Deployment/1".to_owned());
    book(&mut accounts, false, 10);
    assert_eq!(told(&mut accounts), HashMap::from([(nobodys.clone(), [0, 10, 0, 1])]));
    book(&mut accounts, false, 20);
    accounts.rename(|_| Some(pod(1, true)));
    book(&mut accounts, true, 40);
    let both = HashMap::from([(nobodys, [0, 10, 0, 1]), (its, [0, 60, 0, 2])]);
    assert_eq!(told(&mut accounts), both);
    // The pod is gone, and stays in the sums.
    accounts.forget(u32::MAX);
    assert_eq!((accounts.iter().count(), told(&mut accounts)), (0, both));
}

#[test]
fn a_full_book_of_accounts_loses_no_workloads_bytes() {
    let (mut accounts, ledger) = (Accounts::new(Ledger::default()), Ledger::default());
    accounts.ledger = ledger.clone();
    for n in 0..MOST + 100 {
        let mut identity = (*identity(&n.to_string(), "", &n.to_string())).clone();
        identity.namespace = "shop".into();
        identity.workload = Some("Deployment/web".into());
        let attribution =
            Attribution { identity: Some(Arc::new(identity)), by: AttributedBy::Veth };
        accounts.book(&attribution, bytes(3, Direction::Egress), n as u64, &"veth".into());
    }
    let all = 3 * (MOST as u64 + 100);
    let its = ("shop".to_owned(), "Deployment/web".to_owned());
    assert_eq!(told(&mut accounts)[&its][1], all);
    assert_eq!(ledger.losses()[0].records, 100);
}

#[test]
fn ten_thousand_pods_that_come_go_and_come_back_leave_no_series_and_make_none_fall() {
    let mut accounts = Accounts::new(Ledger::default());
    let (mut slice, mut most, mut before) = (100, 0, HashMap::new());
    // Two new pods a slice, a fifth of them under names that were there before: a StatefulSet's.
    for n in 0..10_000_u32 {
        slice += n % 2;
        let again = n.is_multiple_of(5);
        let name = if again { format!("db-{}", n / 5 % 4) } else { format!("web-{n}") };
        let mut identity = (*identity(&format!("uid-{n}"), "", &name)).clone();
        identity.namespace = "shop".into();
        let attribution =
            Attribution { identity: Some(Arc::new(identity)), by: AttributedBy::Veth };
        let traffic = bytes(1_000 + u64::from(n % 7), Direction::Egress);
        accounts.book(&attribution, traffic, slice_start_ns(slice), &"veth".into());
        accounts.forget(slice.saturating_sub(20));
        let now = accounts.totals();
        for (series, traffic) in &now {
            let then: Option<&Traffic> = before.get(series);
            assert!(then.is_none_or(|then| then.egress.bytes <= traffic.egress.bytes));
        }
        most = most.max(now.len());
        before = now;
        if n.is_multiple_of(500) {
            // A sample for each direction of bytes, packets and packets on the wire.
            assert_eq!(samples(&accounts), before.len() * 6);
        }
    }
    assert!(most <= 21 * 2, "{most} series at once");
    assert_eq!(before.keys().filter(|series| series.pod.starts_with("db-")).count(), 4);
    accounts.forget(slice + 1);
    assert_eq!(samples(&accounts), 0);
}

/// Series of pods in what a scrape gets, after making sure that none is there twice.
fn samples(accounts: &Accounts) -> usize {
    let metrics = NetworkMetrics { pods: accounts.totals(), flows: 0, peers_unasked: 0 };
    let text = orb8_metrics::encode(Box::new(metrics)).unwrap();
    let names = text.lines().filter(|line| line.starts_with("orb8_network_"));
    let names: Vec<&str> = names.map(|line| line.rsplit_once(' ').unwrap().0).collect();
    let distinct: std::collections::HashSet<&&str> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "{text}");
    names.len()
}
