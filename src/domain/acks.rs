//! Acknowledged events as ranges, and how new acknowledgements join them.
//!
//! A *lane* is one event type of one feed. Its acknowledged events are kept as ranges of versions:
//! every event of the lane inside a range is acknowledged, and between two neighbouring ranges lies
//! at least one that is not. So reading what is not acknowledged costs one index range for each
//! gap, however long the history is, and the common case (all acknowledged but the newest) is one
//! range. The first range starts at 0, before any event.

/// A range of versions, both ends in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub first: i64,
    pub last: i64,
}

/// Events of a lane that are being acknowledged: from `first` to `last`, with nothing left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub first: i64,
    pub last: i64,
    /// The lane's event before `first`, if any.
    pub before: Option<i64>,
    /// The lane's event after `last`, if any.
    pub after: Option<i64>,
}

/// What has to be written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Ranges to remove, by their first version.
    pub remove: Vec<i64>,
    /// Ranges to write; one that has the same first version is replaced.
    pub put: Vec<Range>,
}

/// A range while it grows.
struct Growing {
    range: Range,
    /// The lane's event after the range, where a stretch at its end told us.
    after: After,
    /// First versions of the stored ranges that it swallowed.
    stored: Vec<Range>,
}

#[derive(Clone, Copy)]
enum After {
    /// The end comes from a stored range: some event follows that is not acknowledged, or none at all.
    Unknown,
    Event(Option<i64>),
}

/// Joins `stretches` to the `stored` ranges of one lane. `stored` must hold every range that
/// overlaps or neighbours a stretch.
pub fn merge(stored: &[Range], stretches: &[Stretch]) -> Change {
    let mut parts: Vec<(Range, Option<Stretch>)> = stored.iter().map(|range| (*range, None)).collect();
    parts.extend(stretches.iter().map(|s| (Range { first: s.first, last: s.last }, Some(*s))));
    parts.sort_by_key(|(range, _)| (range.first, range.last));

    let mut change = Change::default();
    let mut growing: Option<Growing> = None;
    for (range, stretch) in parts {
        if let Some(current) = growing.as_mut()
            && joins(current, range, stretch)
        {
            if range.last > current.range.last {
                current.range.last = range.last;
                current.after = stretch.map_or(After::Unknown, |s| After::Event(s.after));
            }
            if stretch.is_none() {
                current.stored.push(range);
            }
            continue;
        }
        if let Some(done) = growing.take() {
            finish(&done, &mut change);
        }
        growing = Some(Growing {
            range,
            after: stretch.map_or(After::Unknown, |s| After::Event(s.after)),
            stored: if stretch.is_none() { vec![range] } else { Vec::new() },
        });
    }
    if let Some(done) = &growing {
        finish(done, &mut change);
    }
    change
}

/// Whether no event of the lane lies between `current` and the part that begins at `range.first`.
fn joins(current: &Growing, range: Range, stretch: Option<Stretch>) -> bool {
    range.first <= current.range.last
        || stretch.is_some_and(|s| s.before.is_none_or(|before| before <= current.range.last))
        || matches!(current.after, After::Event(after) if after.is_none_or(|after| after >= range.first))
}

fn finish(done: &Growing, change: &mut Change) {
    let unchanged = done.stored.len() == 1 && done.stored[0] == done.range;
    if unchanged {
        return;
    }
    change.remove.extend(done.stored.iter().map(|range| range.first).filter(|first| *first != done.range.first));
    change.put.push(done.range);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A lane kept the plain way: its events and the set of those acknowledged.
    struct Plain {
        events: BTreeSet<i64>,
        acked: BTreeSet<i64>,
    }

    impl Plain {
        fn stretch(&self, first: i64, last: i64) -> Option<Stretch> {
            let inside: Vec<i64> = self.events.range(first..=last).copied().collect();
            Some(Stretch {
                first: *inside.first()?,
                last: *inside.last()?,
                before: self.events.range(..first).next_back().copied(),
                after: self.events.range(last + 1..).next().copied(),
            })
        }
    }

    fn apply(ranges: &mut Vec<Range>, change: Change) {
        ranges.retain(|range| !change.remove.contains(&range.first));
        for put in change.put {
            ranges.retain(|range| range.first != put.first);
            ranges.push(put);
        }
        ranges.sort_by_key(|range| range.first);
    }

    proptest! {
        #[test]
        fn ranges_say_the_same_as_a_set(
            events in prop::collection::btree_set(1_i64..80, 1..40),
            rounds in prop::collection::vec(prop::collection::vec((1_i64..80, 0_i64..12), 1..5), 1..12),
        ) {
            let mut plain = Plain { events, acked: BTreeSet::new() };
            let mut ranges = vec![Range { first: 0, last: 0 }];
            for round in rounds {
                let stretches: Vec<Stretch> = round.iter().filter_map(|(first, more)| plain.stretch(*first, first + more)).collect();
                for (first, more) in &round {
                    let inside: Vec<i64> = plain.events.range(*first..=first + more).copied().collect();
                    plain.acked.extend(inside);
                }
                let change = merge(&ranges, &stretches);
                apply(&mut ranges, change);
                let covered: BTreeSet<i64> = plain.events.iter().copied().filter(|v| ranges.iter().any(|r| (r.first..=r.last).contains(v))).collect();
                prop_assert_eq!(&covered, &plain.acked);
                for pair in ranges.windows(2) {
                    prop_assert!(pair[0].last < pair[1].first);
                    prop_assert!(plain.events.range(pair[0].last + 1..pair[1].first).next().is_some(), "a gap without an event: {:?}", ranges);
                }
            }
        }
    }

    #[test]
    fn acknowledging_in_order_keeps_one_range() {
        let stored = [Range { first: 0, last: 40 }];
        let next = Stretch { first: 57, last: 57, before: Some(40), after: Some(60) };
        assert_eq!(merge(&stored, &[next]), Change { remove: vec![], put: vec![Range { first: 0, last: 57 }] });
    }

    #[test]
    fn a_repetition_writes_nothing() {
        let stored = [Range { first: 0, last: 40 }];
        let again = Stretch { first: 30, last: 30, before: Some(20), after: Some(40) };
        assert_eq!(merge(&stored, &[again]), Change::default());
    }
}
