//! The valid keys of a recipe, to name the nearest one to a misspelt key.

use crate::TrainError;
use toml::{Table, Value};

const SECTIONS: [(&str, &[&str]); 9] = [
    (
        "model",
        &[
            "hidden_size",
            "intermediate_size",
            "layers",
            "heads",
            "kv_heads",
            "max_positions",
            "rope_theta",
            "norm_eps",
            "tie_embeddings",
            "embedding_init",
        ],
    ),
    ("tokenizer", &["file", "vocab_size", "sample_bytes"]),
    ("data", &["text", "validation", "context", "batch"]),
    ("optimizer", &["kind", "lr", "weight_decay", "beta1", "beta2", "eps", "momentum", "nesterov"]),
    ("schedule", &["steps", "warmup", "final_fraction"]),
    ("clip", &["norm"]),
    ("sparsity", &["target", "begin", "end", "every", "pattern", "distribution", "excluded"]),
    ("checkpoint", &["every"]),
    ("evaluation", &["every", "quick", "full"]),
];
const TOP: [&str; 1] = ["seed"];

/// Refuses keys that no setting reads.
pub(crate) fn check(table: &Table, file: &str) -> Result<(), TrainError> {
    for (key, value) in table {
        let section = SECTIONS.iter().find(|s| s.0 == key);
        match (section, value) {
            (Some((_, keys)), Value::Table(inner)) => {
                if let Some(bad) = inner.keys().find(|k| !keys.contains(&k.as_str())) {
                    return Err(unknown(file, &format!("{key}.{bad}")));
                }
            }
            (Some(_), _) => {
                let message = format!("`{key}` is a section: write `[{key}]` and its keys below");
                return Err(TrainError::RecipeSyntax { file: file.to_owned(), message });
            }
            (None, _) if TOP.contains(&key.as_str()) => {}
            (None, _) => return Err(unknown(file, key)),
        }
    }
    Ok(())
}

fn unknown(file: &str, key: &str) -> TrainError {
    // The whole path is compared, so that a key in the wrong section finds its section; the last part counts again.
    let last = |k: &str| k.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |k: &String| {
        strsim::damerau_levenshtein(k, key) + 2 * strsim::damerau_levenshtein(&last(k), &last(key))
    };
    let nearest = all().min_by_key(distance).unwrap_or_default();
    TrainError::UnknownKey { file: file.to_owned(), key: key.to_owned(), nearest }
}

/// Every valid key as `section.key`, section names included.
fn all() -> impl Iterator<Item = String> {
    let inner = SECTIONS.iter().flat_map(|(s, keys)| keys.iter().map(move |k| format!("{s}.{k}")));
    TOP.iter().map(|k| (*k).to_owned()).chain(SECTIONS.iter().map(|s| s.0.to_owned())).chain(inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Recipe, SparsitySettings};
    use std::collections::BTreeSet;

    #[test]
    fn the_list_is_exactly_the_fields_of_the_recipe() {
        let mut recipe = Recipe { sparsity: Some(SparsitySettings::default()), ..Recipe::default() };
        recipe.data.text = Some("a".into());
        recipe.data.validation = Some("a".into());
        recipe.tokenizer.file = Some("a".into());
        let table: Table = recipe.to_toml().parse().unwrap();
        let mut found = BTreeSet::new();
        for (k, v) in &table {
            found.insert(k.clone());
            if let Value::Table(inner) = v {
                found.extend(inner.keys().map(|i| format!("{k}.{i}")));
            }
        }
        assert_eq!(found, all().collect::<BTreeSet<_>>());
    }
}
