//! Accounts: windows, what is closed, and that no workload loses anything by it.

use proptest::prelude::*;

use super::*;
use crate::{
    aggregator::{SLICE, slice_start_ns},
    enricher::AttributedBy,
};

fn newcomer() -> Newcomer {
    let attribution = Attribution { identity: None, by: AttributedBy::None };
    Newcomer { attribution, since_start: true, nobodys: 0 }
}

fn unit(name: &str) -> Owner {
    Owner::Unit(name.into())
}

#[test]
fn who_is_gone_is_forgotten_with_its_last_calls_and_who_lives_is_kept() {
    let mut accounts = Accounts::default();
    for name in ["gone", "lives"] {
        accounts.meet(&unit(name), 0, newcomer);
        accounts.book(&unit(name), &[(1, 1)], 0);
    }
    for (owner, account) in accounts.iter_mut() {
        account.lives = *owner == unit("lives");
    }
    accounts.forget(0);
    assert_eq!(accounts.len(), 2);
    accounts.forget(1);
    assert!(accounts.get(&unit("gone")).is_none() && accounts.get(&unit("lives")).is_some());
}

#[test]
fn a_full_book_forgets_who_is_gone_for_longest_and_counts_it() {
    let mut accounts = Accounts::default();
    let most = u64::try_from(MOST).unwrap();
    for n in 0..most {
        accounts.meet(&unit(&n.to_string()), n, newcomer).lives = n % 2 == 0;
    }
    assert_eq!(accounts.take_forgotten(), 0);
    accounts.meet(&unit("one more"), most, newcomer);
    assert_eq!((accounts.len(), accounts.take_forgotten()), (MOST, 1));
    assert!(accounts.get(&unit("1")).is_none() && accounts.get(&unit("0")).is_some());
}

#[test]
fn of_too_many_that_are_gone_the_first_ones_make_room_and_nobody_who_lives() {
    let mut accounts = Accounts::default();
    let most = u64::try_from(GONE_MOST).unwrap();
    for n in 0..most + 10 {
        accounts.meet(&unit(&n.to_string()), n, newcomer).lives = n == 0;
        accounts.book(&unit(&n.to_string()), &[(1, 1)], n);
    }
    accounts.forget(0);
    assert_eq!((accounts.len(), accounts.take_forgotten_gone()), (GONE_MOST + 1, 9));
    assert!(accounts.get(&unit("0")).is_some() && accounts.get(&unit("10")).is_some());
    assert!((1..10).all(|n| accounts.get(&unit(&n.to_string())).is_none()));
    accounts.forget(0);
    assert_eq!(accounts.take_forgotten_gone(), 0);
}

fn container(id: u32, name: &str, workload: Option<&str>) -> (Owner, Newcomer) {
    let empty: Arc<str> = Arc::default();
    let identity = Identity {
        pod_uid: Arc::clone(&empty),
        namespace: if workload.is_some() { "shop".into() } else { Arc::clone(&empty) },
        pod_name: name.into(),
        container_id: id.to_string().into(),
        container: "app".into(),
        qos: None,
        workload: workload.map(Into::into),
        unit: empty,
    };
    let attribution = Attribution { identity: Some(Arc::new(identity)), by: AttributedBy::Cgroup };
    let owner = Owner::Container(format!("{id:064x}").parse().unwrap());
    (owner, Newcomer { attribution, since_start: true, nobodys: 0 })
}

fn told(accounts: &mut Accounts) -> HashMap<String, u64> {
    accounts.workloads().into_iter().map(|w| (w.workload, w.syscalls)).collect()
}

#[test]
fn a_full_book_loses_no_workloads_calls() {
    let mut accounts = Accounts::default();
    for n in 0..u32::try_from(MOST + 100).unwrap() {
        let (owner, newcomer) = container(n, "web", Some("Deployment/web"));
        accounts.meet(&owner, n.into(), || newcomer);
        accounts.book(&owner, &[(1, 2), (5, 1)], n.into());
    }
    assert_eq!(told(&mut accounts), HashMap::from([("Deployment/web".into(), 30_300)]));
}

#[test]
fn ten_thousand_containers_that_start_over_share_a_series_that_does_not_fall() {
    let (mut accounts, mut slice, mut before, mut most) = (Accounts::default(), 100, 0, 0);
    for n in 0..10_000_u32 {
        slice += n % 2;
        let again = n.is_multiple_of(2);
        let name = if again { "crashing".into() } else { format!("job-{n}") };
        let (owner, newcomer) = container(n, &name, Some("Job/a"));
        let at = slice_start_ns(slice);
        accounts.meet(&owner, at, || newcomer).lives = false;
        accounts.book(&owner, &[(1, 10)], at);
        accounts.forget(slice.saturating_sub(20));
        let mut series: HashMap<Series, u64> = HashMap::new();
        for (owner, account) in accounts.iter() {
            let of = Series::of(owner, account.identity().map(|i| &**i)).unwrap();
            *series.entry(of).or_default() += account.shown().map(|(_, n)| n).sum::<u64>();
        }
        most = most.max(series.len());
        let crashing = series.iter().find(|(of, _)| &*of.pod == "crashing").map(|(_, n)| *n);
        assert!(crashing.is_some_and(|calls| calls >= before), "{before}, then {crashing:?}");
        before = crashing.unwrap();
    }
    assert_eq!(before, 50_000);
    assert!(most <= 23, "{most} series at once");
    accounts.forget(slice + 1);
    assert_eq!((accounts.len(), told(&mut accounts)["Job/a"]), (0, 100_000));
}

proptest! {
    #[test]
    fn workloads_never_fall_and_have_together_all_calls(
        acts in prop::collection::vec((0_u8..6, 0_u32..40, 1_u64..1000), 0..300),
    ) {
        let (mut accounts, mut slice, mut all, mut before) =
            (Accounts::default(), 100, 0, HashMap::new());
        for (act, n, calls) in acts.into_iter().chain([(5, 0, 1)]) {
            match act {
                0..=2 => {
                    let workload = format!("Deployment/{}", n % 3);
                    let (owner, newcomer) =
                        container(n, "web", (act > 0).then_some(&*workload));
                    accounts.meet(&owner, 0, || newcomer);
                    accounts.book(&owner, &[(1, calls)], slice_start_ns(slice));
                    all += calls;
                }
                3 => for (owner, account) in accounts.iter_mut() {
                    account.lives = calls.is_multiple_of(2);
                    let (_, named) = container(n, "web", Some("Deployment/late"));
                    if matches!(owner, Owner::Container(_)) && n < 20 {
                        account.attribution = named.attribution;
                    }
                },
                4 => {
                    slice += n;
                    accounts.forget(slice.saturating_sub(20));
                }
                _ => {
                    let now = told(&mut accounts);
                    prop_assert!(before.iter().all(|(of, sum)| now[of] >= *sum));
                    prop_assert_eq!(now.values().sum::<u64>(), all);
                    before = now;
                }
            }
        }
    }

    #[test]
    fn a_sum_is_what_was_booked_in_its_slices_and_a_total_all_of_it(
        steps in prop::collection::vec((0_u32..3, 0_u16..8, 1_u64..1000), 0..200),
        from in 0_u32..60,
        length in 0_u32..60,
    ) {
        let (owner, mut accounts, mut model, mut slice) =
            (unit("a"), Accounts::default(), Vec::new(), 20);
        accounts.meet(&owner, 0, newcomer);
        for (step, number, calls) in steps {
            slice += step;
            let middle = u64::try_from(SLICE.as_nanos() / 2).unwrap();
            accounts.book(&owner, &[(number, calls)], slice_start_ns(slice) + middle);
            model.push((slice, number, calls));
        }
        let from = from.max(oldest_kept(slice));
        let account = accounts.get(&owner).unwrap();
        let sums = account.sums(from, from + length);
        for number in 0..8 {
            let of = |within: &dyn Fn(u32) -> bool| -> u64 {
                model.iter().filter(|(s, n, _)| *n == number && within(*s)).map(|m| m.2).sum()
            };
            let sum = sums.iter().find(|(n, _)| *n == number).map_or(0, |(_, calls)| *calls);
            prop_assert_eq!(sum, of(&|slice| (from..=from + length).contains(&slice)));
            let total = account.totals().iter().find(|t| t.number == number);
            prop_assert_eq!(total.map_or(0, |t| t.calls), of(&|_| true));
        }
    }
}
