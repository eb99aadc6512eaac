//! `{name}` in the texts of a configuration, as makina-states resolves it: against the data, then against the whole, until
//! nothing changes. A text that is exactly the name of a list or mapping becomes it.

use serde_json::{Map, Value};

use crate::project::yaml::structure::MAX_EXPANDED;

/// How often it is gone through before somebody is told that names stand for themselves.
const MOST_ROUNDS: usize = 24;

/// A key of the top, and what is wrong with its value.
pub type Wrong = (String, &'static str);

/// Resolves the names in `tree`: against itself, then against `second`.
///
/// # Errors
/// If a name leads back to itself, or the whole becomes too large.
pub fn resolve(tree: &mut Map<String, Value>, second: &Map<String, Value>) -> Result<(), Wrong> {
    let mut last = String::new();
    for _ in 0..MOST_ROUNDS {
        let before = tree.clone();
        let mut budget = MAX_EXPANDED;
        for (key, value) in tree.iter_mut() {
            walk(value, &[&before, second], key, &mut budget)?;
        }
        let changed = tree.iter().find(|(key, value)| before.get(*key) != Some(*value));
        let Some((key, _)) = changed else { return Ok(()) };
        last.clone_from(key);
    }
    Err((last, "its names in braces lead back to itself"))
}

fn walk(value: &mut Value, vars: &[&Map<String, Value>], top: &str, budget: &mut usize) -> Result<(), Wrong> {
    match value {
        Value::String(text) => {
            if let Some(new) = resolved(text, vars) {
                *value = new;
            }
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| walk(item, vars, top, budget))?,
        Value::Object(map) => map.values_mut().try_for_each(|inner| walk(inner, vars, top, budget))?,
        _ => {}
    }
    let left = budget.checked_sub(size_of(value));
    *budget = left.ok_or_else(|| (top.to_string(), "it is too large once its names in braces are resolved"))?;
    Ok(())
}

/// How much a value holds by itself.
fn size_of(value: &Value) -> usize {
    if let Value::String(text) = value { 8 + text.len() } else { 8 }
}

/// A text with its names replaced; `None` where nothing changes.
fn resolved(text: &str, vars: &[&Map<String, Value>]) -> Option<Value> {
    if !text.contains('{') {
        return None;
    }
    if let Some(name) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))
        && let Some(found) = find(name, vars)
        && (found.is_array() || found.is_object())
    {
        return Some(found.clone());
    }
    let mut new = String::with_capacity(text.len());
    let mut rest = text;
    // What is larger than everything may be is refused by who counts.
    while let Some(open) = rest.find('{').filter(|_| new.len() <= MAX_EXPANDED) {
        let (before, from) = rest.split_at(open);
        new.push_str(before);
        let shown = from[1..].find(['{', '}']).filter(|end| from[1 + end..].starts_with('}')).and_then(|end| {
            let found = shown(find(&from[1..=end], vars)?)?;
            Some((found, end + 2))
        });
        if let Some((found, length)) = shown {
            new.push_str(&found);
            rest = &from[length..];
        } else {
            new.push('{');
            rest = &from[1..];
        }
    }
    new.push_str(rest);
    (new != text).then_some(Value::String(new))
}

fn find<'a>(name: &str, vars: &[&'a Map<String, Value>]) -> Option<&'a Value> {
    vars.iter().find_map(|map| map.get(name))
}

/// A value inside of a text, as Python writes it; lists and mappings stay what they are.
fn shown(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(true) => Some("True".into()),
        Value::Bool(false) => Some("False".into()),
        Value::Null => Some("None".into()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::resolve;

    fn map(value: Value) -> serde_json::Map<String, Value> {
        let Value::Object(map) = value else { panic!("{value} is no mapping") };
        map
    }

    #[test]
    fn names_are_replaced_until_nothing_changes() {
        let mut tree = map(json!({
            "url": "postgres://{user}:{pass}@{host}:{port}/{name}", "user": "{name}", "pass": "a{b", "host": "{fqdn}",
            "port": 5432, "debug": "{flag}", "flag": true, "none": "x{nothing}", "nothing": null,
            "all": "{list}", "list": [1, "{name}"], "in": {"deep": ["{map}", "is {map}"]}, "map": {"k": "{port}"},
            "unknown": "{unknown_name} {} {not closed {name}", "name": "mine"
        }));
        let second = map(json!({"name": "shop", "fqdn": "node.example.org"}));
        resolve(&mut tree, &second).unwrap();
        assert_eq!(tree["url"], "postgres://mine:a{b@node.example.org:5432/mine");
        assert_eq!((&tree["debug"], &tree["none"]), (&json!("True"), &json!("xNone")));
        assert_eq!(tree["all"], json!([1, "mine"]));
        assert_eq!(tree["in"], json!({"deep": [{"k": "5432"}, "is {map}"]}));
        assert_eq!(tree["unknown"], "{unknown_name} {} {not closed mine");
    }

    #[test]
    fn what_never_ends_is_an_error() {
        let nothing = map(json!({}));
        for bad in [json!({"a": "x{a}"}), json!({"a": "{b}!", "b": "{a}!"})] {
            let error = resolve(&mut map(bad.clone()), &nothing).unwrap_err();
            assert!(error.1.contains("lead back") || error.1.contains("too large"), "{bad}: {error:?}");
        }
        let mut bombs = map(json!({"a0": "0123456789"}));
        for n in 1..40 {
            bombs.insert(format!("a{n}"), json!(format!("{{a{0}}}{{a{0}}}", n - 1)));
        }
        let error = resolve(&mut bombs, &nothing).unwrap_err();
        assert!(error.1.contains("too large"), "{error:?}");
    }
}
