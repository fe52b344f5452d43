//! Other people's classifiers keep working, whichever way and in whichever order they and orb8's are
//! attached, and stay when orb8 goes.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use aya::programs::TcAttachType;
use orb8_agent::config::TcAttach;
use orb8_testkit::Program;
use orb8_tests::{
    Classifier, DROPPER, Place, Scene, Traced, address, assert_exact,
    hooks::{filters_at, has_clsact, is_orb8, tc},
};

/// Dropped where it leaves the client, by somebody else.
const NOT_SENT: u16 = 9999;
/// Dropped where it would reach the server, by somebody else.
const NOT_RECEIVED: u16 = 9997;
/// Nobody's business.
const FREE: u16 = 9998;
const PACKETS: u64 = 50;

fn trace(scene: &Scene, how: TcAttach) -> Result<Traced> {
    Traced::start(&scene.node, |config| config.tc_attach = how)
}

fn drop_both(scene: &Scene, place: Place) -> Result<[Classifier; 2]> {
    let [sender, receiver] = scene.veths();
    Ok([
        Classifier::dropper(sender, TcAttachType::Ingress, place, NOT_SENT)?,
        Classifier::dropper(receiver, TcAttachType::Egress, place, NOT_RECEIVED)?,
    ])
}

fn arrives(scene: &Scene, port: u16) -> Result<u64> {
    let mut sink = scene.server.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, port))?;
    let send = Program::udp_send(address(&scene.server, false, port), PACKETS, 64);
    scene.client.spawn("app", &send)?.wait()?;
    Ok(sink.stop()?.packets)
}

fn ensure_they_drop(scene: &Scene) -> Result<()> {
    let arrived = [arrives(scene, NOT_SENT)?, arrives(scene, NOT_RECEIVED)?, arrives(scene, FREE)?];
    ensure!(arrived == [0, 0, PACKETS], "{arrived:?} arrived, expected [0, 0, {PACKETS}]");
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    BeforeOrb8,
    AfterOrb8,
}

fn they_keep_dropping(scene: &Scene, ours: TcAttach, theirs: Place, when: When) -> Result<()> {
    let (traced, theirs) = match when {
        When::BeforeOrb8 => {
            let theirs = drop_both(scene, theirs)?;
            (trace(scene, ours)?, theirs)
        }
        When::AfterOrb8 => (trace(scene, ours)?, drop_both(scene, theirs)?),
    };
    ensure_they_drop(scene).context("while orb8 runs")?;
    let both = scene.programs()?;
    ensure!(both.iter().filter(|name| is_orb8(name)).count() == 4, "{both:?}");
    traced.stop()?;
    ensure_they_drop(scene).context("after orb8 has gone")?;
    let left = scene.programs()?;
    ensure!(left == [DROPPER, DROPPER], "{left:?} are left, expected theirs");
    drop(theirs);
    Ok(())
}

fn in_every_order(ours: TcAttach, theirs: &[Place]) -> Result<()> {
    let scene = Scene::start_inside()?;
    for place in theirs {
        for when in [When::BeforeOrb8, When::AfterOrb8] {
            they_keep_dropping(&scene, ours, *place, when)
                .with_context(|| format!("ours by {ours:?}, theirs {place:?}, {when:?}"))?;
        }
    }
    Ok(())
}

const ON_CLSACT: [Place; 4] =
    [Place::Clsact(1), Place::Clsact(2), Place::Clsact(49_152), Place::Clsact(u16::MAX)];

#[test]
fn a_tcx_classifier_of_others_keeps_dropping_beside_tcx() -> Result<()> {
    in_every_order(TcAttach::Tcx, &[Place::First, Place::Last])
}

#[test]
fn a_tcx_classifier_of_others_keeps_dropping_beside_clsact() -> Result<()> {
    in_every_order(TcAttach::Clsact, &[Place::First, Place::Last])
}

#[test]
fn a_clsact_filter_of_others_keeps_dropping_beside_tcx() -> Result<()> {
    in_every_order(TcAttach::Tcx, &ON_CLSACT)
}

#[test]
fn a_clsact_filter_of_others_keeps_dropping_beside_clsact() -> Result<()> {
    in_every_order(TcAttach::Clsact, &ON_CLSACT)
}

#[test]
fn what_others_drop_is_counted_where_the_kernel_counts_it() -> Result<()> {
    for (ours, theirs) in [(TcAttach::Tcx, Place::First), (TcAttach::Clsact, Place::Clsact(49_152))]
    {
        let scene = Scene::start_inside()?;
        let _theirs = drop_both(&scene, theirs)?;
        let traced = trace(&scene, ours)?;
        ensure_they_drop(&scene)?;
        let client = traced.quiet_counters(scene.client.veth())?;
        assert_exact(&client).with_context(|| format!("{ours:?} and {theirs:?}"))?;
        ensure!(client.kernel_ingress_packets >= 3 * PACKETS, "{client:?}");
        let server = traced.quiet_counters(scene.server.veth())?;
        assert_exact(&server).with_context(|| format!("{ours:?} and {theirs:?}"))?;
        traced.stop()?;
    }
    Ok(())
}

#[test]
fn a_clsact_that_orb8_made_goes_with_it_and_one_that_others_made_stays() -> Result<()> {
    let scene = Scene::start_inside()?;
    let (node, made_by_orb8, theirs) = (&scene.node, scene.client.veth(), scene.server.veth());
    tc(node, &["qdisc", "add", "dev", theirs, "clsact"])?;
    let traced = trace(&scene, TcAttach::Clsact)?;
    for interface in [made_by_orb8, theirs] {
        assert!(has_clsact(node, interface)?);
        assert_eq!(filters_at(node, interface)?, ["orb8_ingress", "orb8_egress"]);
    }
    traced.stop()?;
    assert!(!has_clsact(node, made_by_orb8)?);
    assert!(has_clsact(node, theirs)?);
    assert_eq!(filters_at(node, theirs)?, [""; 0]);

    // Unless somebody has come to use it in the meantime.
    let traced = trace(&scene, TcAttach::Clsact)?;
    let place = Place::Clsact(7);
    let _dropper = Classifier::dropper(made_by_orb8, TcAttachType::Ingress, place, NOT_SENT)?;
    traced.stop()?;
    assert!(has_clsact(node, made_by_orb8)?);
    assert_eq!(filters_at(node, made_by_orb8)?, [DROPPER]);
    Ok(())
}
