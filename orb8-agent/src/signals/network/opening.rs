//! Who opened a connection: whoever sent a SYN without ACK, in the life of this very conversation.

use orb8_proto::OpenedBy;

use super::table::{FlowKey, FlowTable};

/// Who sent a SYN without ACK, of the two ends of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) by_sender: bool,
    by_receiver: bool,
}

impl Opening {
    /// As the owner of the flow sees it. Where both opened (each knew the other's port, or the ports
    /// are used again the other way round), nobody is named.
    pub(super) const fn opened_by(self, owner_sends: bool) -> OpenedBy {
        match (self.by_sender, self.by_receiver) {
            (true, false) if owner_sends => OpenedBy::Owner,
            (false, true) if !owner_sends => OpenedBy::Owner,
            (false, false) | (true, true) => OpenedBy::Unknown,
            _ => OpenedBy::Peer,
        }
    }
}

impl FlowTable {
    /// Notes what the beginning of a flow (`born`), or its first SYN without ACK (`opens`), says about
    /// its conversation. A reverse flow that has ended belongs to an earlier one.
    pub(super) fn note_opening(&mut self, key: &FlowKey, born: bool, opens: bool) {
        if !born && !opens {
            return;
        }
        let answers = self.get_mut(&key.reverse()).filter(|reverse| reverse.end.is_none());
        let answered_opens = answers.is_some_and(|reverse| {
            // Whoever sends now is who is answered.
            reverse.epoch = if born { 0 } else { reverse.epoch };
            reverse.opening.by_receiver |= opens;
            reverse.opening.by_sender
        });
        if let Some(flow) = self.get_mut(key) {
            flow.opening.by_sender |= opens;
            flow.opening.by_receiver |= born && answered_opens;
        }
    }
}

#[cfg(test)]
mod tests {
    use orb8_common::network::{Counts, FlowStats};
    use proptest::prelude::*;

    use super::*;
    use crate::signals::network::{interfaces::Serial, maps::FlowId, table::End};

    fn sent() -> FlowKey {
        FlowKey::new(FlowId::example(6, 40_000, 80), Serial(1))
    }

    /// A flow's entry whose first packet was at `first_ns`.
    fn stats(first_ns: u64, packets: u64, syn: u8, syn_ack: u8) -> FlowStats {
        let counts = Counts { packets, bytes: packets * 100, extra_segments: 0 };
        FlowStats { counts, first_ns, syn, syn_ack, ..FlowStats::default() }
    }

    /// Who opened the conversation, as the sender of `sent` sees it, in the records of both of its
    /// directions.
    fn opened(table: &FlowTable) -> [OpenedBy; 2] {
        let opening = |key, sends| {
            table.get(&key).map_or(OpenedBy::Unknown, |flow| flow.opening.opened_by(sends))
        };
        [opening(sent(), true), opening(sent().reverse(), false)]
    }

    const OWNER: [OpenedBy; 2] = [OpenedBy::Owner; 2];
    const PEER: [OpenedBy; 2] = [OpenedBy::Peer; 2];
    const UNKNOWN: [OpenedBy; 2] = [OpenedBy::Unknown; 2];

    #[test]
    fn whoever_sends_a_syn_opens_whichever_direction_is_told_of_first() {
        let (ours, theirs) = (sent(), sent().reverse());
        for (opener, answerer, expected) in [(ours, theirs, OWNER), (theirs, ours, PEER)] {
            for opener_first in [true, false] {
                let mut table = FlowTable::new();
                let mut tell = |is_opener| {
                    let key = if is_opener { opener } else { answerer };
                    let stats = stats(5, 3, u8::from(is_opener), u8::from(!is_opener));
                    table.observe(key, &stats, 10);
                };
                tell(opener_first);
                tell(!opener_first);
                assert_eq!(opened(&table), expected);
            }
        }
    }

    #[test]
    fn a_connection_whose_opening_was_not_seen_was_opened_by_nobody_known() {
        let mut table = FlowTable::new();
        table.observe(sent(), &stats(5, 3, 0, 0), 10);
        table.observe(sent().reverse(), &stats(6, 3, 0, 1), 10);
        assert_eq!(opened(&table), UNKNOWN, "an answer to a SYN that was not seen");
    }

    #[test]
    fn a_connection_that_both_open_at_once_is_nobodys() {
        let mut table = FlowTable::new();
        table.observe(sent(), &stats(5, 3, 1, 1), 10);
        assert_eq!(opened(&table)[0], OpenedBy::Owner);
        table.observe(sent().reverse(), &stats(6, 3, 1, 1), 10);
        assert_eq!(opened(&table), UNKNOWN);
    }

    #[test]
    fn a_syn_that_comes_again_changes_nothing() {
        let mut table = FlowTable::new();
        for packets in 1..4 {
            table.observe(sent(), &stats(5, packets, 1, 0), 10 * packets);
        }
        table.observe(sent().reverse(), &stats(35, 1, 0, 1), 40);
        table.observe(sent(), &stats(5, 9, 1, 0), 50);
        assert_eq!(opened(&table), OWNER);
    }

    #[test]
    fn ports_that_are_used_again_are_a_connection_of_their_own() {
        let (ours, theirs) = (sent(), sent().reverse());
        let mut table = FlowTable::new();
        table.observe(ours, &stats(5, 3, 1, 0), 10);
        table.observe(theirs, &stats(6, 3, 0, 1), 10);
        for key in [ours, theirs] {
            table.end(key, End::Fin);
        }
        assert_eq!(opened(&table), OWNER, "what has ended is still told");
        // The other way round, told of before the flow that answers has begun its own second life.
        table.observe(theirs, &stats(50, 1, 1, 0), 60);
        assert_eq!(opened(&table)[1], OpenedBy::Peer);
        table.observe(ours, &stats(51, 1, 0, 1), 60);
        assert_eq!(opened(&table), PEER);
        // And one whose opening nobody saw.
        for key in [ours, theirs] {
            table.end(key, End::Idle);
        }
        table.observe(ours, &stats(70, 1, 0, 0), 80);
        table.observe(theirs, &stats(71, 1, 0, 0), 80);
        assert_eq!(opened(&table), UNKNOWN);
    }

    proptest! {
        #[test]
        fn nobody_is_named_who_sent_no_syn(told in prop::collection::vec(
            (any::<bool>(), 1..4u64, 0..5u64, any::<bool>(), any::<bool>()), 1..30,
        )) {
            let mut table = FlowTable::new();
            let mut sent_syn = [false; 2];
            for (ours, life, packets, syn, ends) in told {
                let key = if ours { sent() } else { sent().reverse() };
                table.observe(key, &stats(life, packets, u8::from(syn), 0), 10);
                sent_syn[usize::from(!ours)] |= syn;
                if ends {
                    table.end(key, End::Idle);
                }
                for opener in opened(&table) {
                    prop_assert!(opener != OpenedBy::Owner || sent_syn[0]);
                    prop_assert!(opener != OpenedBy::Peer || sent_syn[1]);
                }
            }
        }
    }
}
