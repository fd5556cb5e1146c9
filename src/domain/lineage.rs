//! The histories that a store continues, and which of their readers can go on.

/// A history. It shares everything below `first_version` with the previous one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    pub epoch: String,
    pub first_version: i64,
}

/// The histories of a store, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage(Vec<History>);

impl Lineage {
    pub fn new(histories: Vec<History>) -> Self {
        Self(histories)
    }

    /// The name of the present history.
    pub fn epoch(&self) -> &str {
        self.0.last().map_or("", |history| &history.epoch)
    }

    /// Whether this is a history of the store.
    pub fn has(&self, epoch: &str) -> bool {
        self.0.iter().any(|history| history.epoch == epoch)
    }

    /// Whether a reader who was given everything up to `version` in the history `epoch` can go on in the present one,
    /// because nothing that it was given has been replaced.
    pub fn continues(&self, epoch: &str, version: i64) -> bool {
        let Some(position) = self.0.iter().position(|history| history.epoch == epoch) else { return false };
        self.0[position + 1..].iter().all(|later| version < later.first_version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(histories: &[(&str, i64)]) -> Lineage {
        let history = |(epoch, first_version): &(&str, i64)| History {
            epoch: (*epoch).to_owned(),
            first_version: *first_version,
        };
        Lineage::new(histories.iter().map(history).collect())
    }

    #[test]
    fn a_reader_goes_on_with_what_both_histories_have() {
        let lineage = lineage(&[("a", 1), ("b", 101), ("c", 51), ("d", 201)]);
        assert_eq!(lineage.epoch(), "d");
        for (epoch, version, goes_on) in [
            ("d", 9_999, true),
            ("c", 200, true),
            ("c", 201, false),
            // c branched off b at 51.
            ("b", 50, true),
            ("b", 51, false),
            ("a", 50, true),
            ("a", 51, false),
            ("a", 101, false),
            ("x", 0, false),
        ] {
            assert_eq!(lineage.continues(epoch, version), goes_on, "{epoch} at {version}");
        }
    }
}
