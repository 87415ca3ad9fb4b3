//! Workloads: the desired number of pods and the selector, from the spec or from the `scale` subresource.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector};
use serde_json::Value;

use super::objects::RawWorkload;

/// A workload as it was last observed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ObservedWorkload {
    /// The selector of the workload's pods, or why it is not known.
    pub(super) selector: Result<Selector, String>,
    /// The desired number of replicas, if it is known.
    pub(super) replicas: Option<u32>,
}

impl ObservedWorkload {
    /// Reads a workload whose spec has the form of a Deployment's.
    pub(super) fn from_raw(raw: RawWorkload) -> Self {
        let (selector, replicas) = raw.spec.map(|spec| (spec.selector, spec.replicas)).unwrap_or_default();
        let read = |selector: Value| {
            let selector = serde_json::from_value::<LabelSelector>(selector).map_err(|error| error.to_string())?;
            Selector::try_from(selector).map_err(|error| error.to_string())
        };
        let selector = match selector.map(read) {
            // A selector that matches every pod is a mistake.
            Some(Ok(selector)) if !selector.selects_all() => Ok(selector),
            Some(Err(error)) => Err(format!("its selector cannot be read: {error}")),
            _ => Err("it has no selector".to_owned()),
        };
        let replicas = replicas.and_then(|replicas| u32::try_from(replicas.as_u64()?).ok());
        Self { selector, replicas }
    }

    /// Reads a workload from its `scale` subresource.
    pub(super) fn from_scale(selector: Option<&str>, replicas: Option<i32>) -> Self {
        let selector = selector.filter(|text| !text.trim().is_empty());
        let selector = selector.ok_or_else(|| "its scale subresource has no selector".to_owned());
        Self {
            selector: selector.and_then(parse_selector),
            replicas: replicas.and_then(|replicas| u32::try_from(replicas).ok()),
        }
    }
}

/// Parses a selector in text form, such as `app=model,tier in (a, b),!old`.
fn parse_selector(text: &str) -> Result<Selector, String> {
    let mut terms = vec![String::new()];
    let mut depth = 0_i32;
    for letter in text.chars() {
        depth += match letter {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        match terms.last_mut() {
            Some(term) if letter != ',' || depth > 0 => term.push(letter),
            _ => terms.push(String::new()),
        }
    }
    terms
        .iter()
        .map(|term| term.trim())
        .map(parse_expression)
        .collect::<Option<Selector>>()
        .ok_or_else(|| format!("its selector cannot be read: {text}"))
}

fn parse_expression(term: &str) -> Option<Expression> {
    let set = |(name, values): (&str, &str)| {
        let values = values.trim().strip_prefix('(')?.strip_suffix(')')?;
        let values: BTreeSet<String> = values.split(',').map(|value| value.trim().to_owned()).collect();
        Some((name.trim().to_owned(), values))
    };
    let pair = |(name, value): (&str, &str)| (name.trim().to_owned(), value.trim_start_matches('=').trim().to_owned());
    if let Some(parts) = term.split_once(" notin ") {
        return set(parts).map(|(name, values)| Expression::NotIn(name, values));
    }
    if let Some(parts) = term.split_once(" in ") {
        return set(parts).map(|(name, values)| Expression::In(name, values));
    }
    if let Some(parts) = term.split_once("!=") {
        let (name, value) = pair(parts);
        return Some(Expression::NotEqual(name, value));
    }
    if let Some(parts) = term.split_once('=') {
        let (name, value) = pair(parts);
        return Some(Expression::Equal(name, value));
    }
    match term.strip_prefix('!') {
        Some(name) => Some(Expression::DoesNotExist(name.trim().to_owned())),
        None => (!term.is_empty() && !term.contains(['(', ')', ' '])).then(|| Expression::Exists(term.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_something_else_is_no_workload_and_no_error() {
        let read = |spec: Value| {
            let raw = serde_json::json!({"metadata": {"name": "x"}, "spec": spec, "status": "fine"});
            ObservedWorkload::from_raw(serde_json::from_value(raw).unwrap())
        };
        let good = read(serde_json::json!({"replicas": 3, "selector": {"matchLabels": {"app": "x"}}}));
        assert_eq!((good.selector.unwrap().to_string(), good.replicas), ("app=x".to_owned(), Some(3)));
        for other in [
            serde_json::json!({"replicas": "three", "selector": "app=x"}),
            serde_json::json!({"replicas": -1, "selector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}),
            serde_json::json!({"selector": {}}),
            serde_json::json!({}),
            Value::Null,
        ] {
            let read = read(other.clone());
            assert!(read.selector.is_err() && read.replicas.is_none(), "{other}: {read:?}");
        }
    }

    #[test]
    fn selectors_as_text_are_read() {
        let read = |text: &str| ObservedWorkload::from_scale(Some(text), Some(1)).selector;
        let shown = |text: &str| read(text).unwrap().to_string();
        assert_eq!(shown("app=model"), "app=model");
        assert_eq!(
            shown("app==model, tier in (a, b),x notin (c),y!=z,!old,new"),
            "app=model,tier in (a,b),x notin (c),y!=z,!old,new"
        );
        for wrong in ["", " ", "a in b", "(", "a b", ","] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
