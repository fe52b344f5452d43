//! The labels of a pod.

/// Labels, sorted and no larger than they must be: every pod of the node keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    /// The value of the label `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(key, _)| (**key).cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    /// Of several values for one name, any may stay.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let pairs = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut pairs: Vec<(Box<str>, Box<str>)> = pairs.collect();
        pairs.sort_unstable();
        pairs.dedup_by(|one, other| one.0 == other.0);
        Self(pairs.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_is_found_by_its_name_and_no_other_is() {
        let labels: Labels = [("tier", "front"), ("app", "web"), ("a/b", "")].into_iter().collect();
        assert_eq!(labels.get("app"), Some("web"));
        assert_eq!((labels.get("a/b"), labels.get("ap")), (Some(""), None));
        let names: Vec<&str> = labels.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a/b", "app", "tier"]);
    }
}
