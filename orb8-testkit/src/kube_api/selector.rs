//! Field and label selectors.

use serde_json::Value;

/// Conditions that an object has to meet, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Condition>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    /// JSON pointer.
    pointer: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

/// Fields that the API server can select by.
const FIELDS: [&str; 4] = ["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"];

impl Selector {
    /// From the texts of `fieldSelector` and `labelSelector`. The error is the API's message.
    pub(super) fn parse(fields: &str, labels: &str) -> Result<Self, String> {
        let fields = terms(fields).map(field);
        fields.chain(terms(labels).map(label)).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|condition| {
            let value = object.pointer(&condition.pointer).and_then(Value::as_str);
            match &condition.test {
                Test::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
                Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
                Test::Exists => value.is_some(),
                Test::Missing => value.is_none(),
            }
        })
    }
}

/// Commas separate terms, except within parentheses.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
}

fn field(term: &str) -> Result<Condition, String> {
    let (name, test) = equality(term)
        .ok_or_else(|| format!("invalid field selector {term:?}: expected name=value"))?;
    if !FIELDS.contains(&name) {
        return Err(format!("field label not supported: {name}"));
    }
    Ok(Condition { pointer: format!("/{}", name.replace('.', "/")), test })
}

fn label(term: &str) -> Result<Condition, String> {
    let (name, test) = if let Some(condition) = equality(term) {
        condition
    } else if let Some((name, values)) = term.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        match name.trim().rsplit_once(' ') {
            Some((name, "in")) => (name.trim(), Test::In(values)),
            Some((name, "notin")) => (name.trim(), Test::NotIn(values)),
            _ => return Err(format!("unable to parse requirement {term:?}")),
        }
    } else if let Some(name) = term.strip_prefix('!') {
        (name, Test::Missing)
    } else {
        (term, Test::Exists)
    };
    let escaped = name.replace('~', "~0").replace('/', "~1");
    Ok(Condition { pointer: format!("/metadata/labels/{escaped}"), test })
}

/// `name=value`, `name==value` or `name!=value`.
fn equality(term: &str) -> Option<(&str, Test)> {
    if let Some((name, value)) = term.split_once("!=") {
        return Some((name.trim(), Test::NotIn(vec![value.trim().to_owned()])));
    }
    let (name, value) = term.split_once('=')?;
    let value = value.strip_prefix('=').unwrap_or(value);
    Some((name.trim(), Test::In(vec![value.trim().to_owned()])))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_choose_as_the_api_server_does() {
        let pod = json!({
            "metadata": { "name": "web-1", "labels": { "app": "web", "example.com/tier": "front" } },
            "spec": { "nodeName": "n1" },
        });
        let cases = [
            ("spec.nodeName=n1", "", true),
            ("spec.nodeName==n1,metadata.name!=web-2", "", true),
            ("spec.nodeName=n2", "", false),
            ("", "app=web,example.com/tier", true),
            ("", "app in (db, web),!batch", true),
            ("", "app notin (db,web)", false),
            ("", "app!=db,other!=x", true),
            ("spec.nodeName=n1", "app=db", false),
        ];
        for (fields, labels, expected) in cases {
            let selector = Selector::parse(fields, labels).unwrap();
            assert_eq!(selector.matches(&pod), expected, "{fields} {labels}");
        }
        assert!(
            Selector::parse("spec.hostNetwork=true", "").unwrap_err().contains("not supported")
        );
    }
}
