//! Other people's classifiers keep working, whichever way and in whichever order they and orb8's are
//! attached, and stay when orb8 goes.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use aya::programs::TcAttachType;
use orb8_agent::config::TcAttach;
use orb8_testkit::{Node, NodeOptions, Pod, PodSpec, Program};
use orb8_tests::{
    Classifier, DROPPER, Place, Traced, address, assert_exact,
    hooks::{filters_at, has_clsact, is_orb8, programs_at, tc},
};

/// Dropped where it leaves the client, by somebody else.
const NOT_SENT: u16 = 9999;
/// Dropped where it would reach the server, by somebody else.
const NOT_RECEIVED: u16 = 9997;
/// Nobody's business.
const FREE: u16 = 9998;
const PACKETS: u64 = 50;

struct Scene {
    node: Node,
    client: Pod,
    server: Pod,
}

impl Scene {
    /// The calling thread is in the node's network namespace from here on.
    fn start() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        node.enter()?;
        let client = node.start_pod(PodSpec::new("shop", "client"))?;
        let server = node.start_pod(PodSpec::new("shop", "server"))?;
        Ok(Self { node, client, server })
    }

    fn trace(&self, how: TcAttach) -> Result<Traced> {
        Traced::start(&self.node, |config| config.tc_attach = how)
    }

    fn drop_both(&self, place: Place) -> Result<[Classifier; 2]> {
        let (sender, receiver) = (self.client.veth(), self.server.veth());
        Ok([
            Classifier::dropper(sender, TcAttachType::Ingress, place, NOT_SENT)?,
            Classifier::dropper(receiver, TcAttachType::Egress, place, NOT_RECEIVED)?,
        ])
    }

    fn arrives(&self, port: u16) -> Result<u64> {
        let mut sink = self.server.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, port))?;
        let send = Program::udp_send(address(&self.server, false, port), PACKETS, 64);
        self.client.spawn("app", &send)?.wait()?;
        Ok(sink.stop()?.packets)
    }

    fn ensure_they_drop(&self) -> Result<()> {
        let arrived = [self.arrives(NOT_SENT)?, self.arrives(NOT_RECEIVED)?, self.arrives(FREE)?];
        ensure!(arrived == [0, 0, PACKETS], "{arrived:?} arrived, expected [0, 0, {PACKETS}]");
        Ok(())
    }

    fn programs(&self) -> Result<Vec<String>> {
        let mut names = programs_at(&self.node, self.client.veth())?;
        names.extend(programs_at(&self.node, self.server.veth())?);
        Ok(names)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    BeforeOrb8,
    AfterOrb8,
}

fn they_keep_dropping(scene: &Scene, ours: TcAttach, theirs: Place, when: When) -> Result<()> {
    let (traced, theirs) = match when {
        When::BeforeOrb8 => {
            let theirs = scene.drop_both(theirs)?;
            (scene.trace(ours)?, theirs)
        }
        When::AfterOrb8 => (scene.trace(ours)?, scene.drop_both(theirs)?),
    };
    scene.ensure_they_drop().context("while orb8 runs")?;
    let both = scene.programs()?;
    ensure!(both.iter().filter(|name| is_orb8(name)).count() == 4, "{both:?}");
    traced.stop()?;
    scene.ensure_they_drop().context("after orb8 has gone")?;
    let left = scene.programs()?;
    ensure!(left == [DROPPER, DROPPER], "{left:?} are left, expected theirs");
    drop(theirs);
    Ok(())
}

fn in_every_order(ours: TcAttach, theirs: &[Place]) -> Result<()> {
    let scene = Scene::start()?;
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
        let scene = Scene::start()?;
        let _theirs = scene.drop_both(theirs)?;
        let traced = scene.trace(ours)?;
        scene.ensure_they_drop()?;
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
    let scene = Scene::start()?;
    let (node, made_by_orb8, theirs) = (&scene.node, scene.client.veth(), scene.server.veth());
    tc(node, &["qdisc", "add", "dev", theirs, "clsact"])?;
    let traced = scene.trace(TcAttach::Clsact)?;
    for interface in [made_by_orb8, theirs] {
        assert!(has_clsact(node, interface)?);
        assert_eq!(filters_at(node, interface)?, ["orb8_ingress", "orb8_egress"]);
    }
    traced.stop()?;
    assert!(!has_clsact(node, made_by_orb8)?);
    assert!(has_clsact(node, theirs)?);
    assert_eq!(filters_at(node, theirs)?, [""; 0]);

    // Unless somebody has come to use it in the meantime.
    let traced = scene.trace(TcAttach::Clsact)?;
    let place = Place::Clsact(7);
    let _dropper = Classifier::dropper(made_by_orb8, TcAttachType::Ingress, place, NOT_SENT)?;
    traced.stop()?;
    assert!(has_clsact(node, made_by_orb8)?);
    assert_eq!(filters_at(node, made_by_orb8)?, [DROPPER]);
    Ok(())
}
