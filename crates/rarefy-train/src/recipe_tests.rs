#![allow(clippy::unwrap_used)]
use crate::{OptimizerKind, Recipe, TrainError};

fn error(text: &str) -> TrainError {
    Recipe::from_toml_str(text).unwrap_err()
}

#[test]
fn defaults_and_a_whole_recipe_round_trip() {
    assert_eq!(Recipe::from_toml_str("").unwrap(), Recipe::default());
    let text = "seed = 3\n[optimizer]\nkind = \"sgd\"\nlr = 0.1\nnesterov = true\n[sparsity]\ntarget = 0.75\npattern = \"2:4\"\n";
    let recipe = Recipe::from_toml_str(text).unwrap();
    assert_eq!(recipe.optimizer.kind, OptimizerKind::Sgd);
    assert_eq!(recipe.sparsity.as_ref().unwrap().pattern.to_string(), "2:4");
    assert_eq!(Recipe::from_toml_str(&recipe.to_toml()).unwrap(), recipe);
}

#[test]
fn the_builtin_recipe_is_valid() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/builtin.toml");
    let recipe = Recipe::from_file(&path).unwrap();
    assert!(recipe.data.text.is_none() && recipe.sparsity.is_none());
}

#[test]
fn unknown_keys_name_the_nearest_valid_one() {
    for (text, key, nearest) in [
        ("[optimizer]\nlearning_rate = 1.0", "optimizer.learning_rate", None),
        ("[optimizer]\nweight_deacy = 1.0", "optimizer.weight_deacy", Some("optimizer.weight_decay")),
        ("[optimiser]\nlr = 1.0", "optimiser", Some("optimizer")),
        ("[schedule]\nwarm_up = 1", "schedule.warm_up", Some("schedule.warmup")),
        ("[model]\nhidden_sise = 1", "model.hidden_sise", Some("model.hidden_size")),
        ("[data]\nlr = 1", "data.lr", Some("optimizer.lr")),
        ("sed = 1", "sed", Some("seed")),
        ("[sparsity]\nptatern = \"2:4\"", "sparsity.ptatern", Some("sparsity.pattern")),
    ] {
        match error(text) {
            TrainError::UnknownKey { key: k, nearest: n, .. } => {
                assert_eq!(k, key);
                assert!(nearest.is_none_or(|x| x == n), "{key}: {n}");
            }
            other => panic!("{text}: {other}"),
        }
    }
}

#[test]
fn values_out_of_range_name_field_and_value() {
    for (text, field) in [
        ("[model]\nheads = 5", "model.hidden_size"),
        ("[model]\nkv_heads = 3", "model.kv_heads"),
        ("[model]\nhidden_size = 0", "model.hidden_size"),
        ("[model]\nheads = 0", "model.heads"),
        ("[model]\nlayers = 100000", "model.layers"),
        ("[model]\nrope_theta = nan", "model.rope_theta"),
        ("[model]\nembedding_init = 0.0", "model.embedding_init"),
        ("[tokenizer]\nvocab_size = 255", "tokenizer.vocab_size"),
        ("[data]\ncontext = 129", "data.context"),
        ("[data]\ncontext = 1", "data.context"),
        ("[data]\nbatch = 0", "data.batch"),
        ("[optimizer]\nlr = 0.0", "optimizer.lr"),
        ("[optimizer]\nlr = inf", "optimizer.lr"),
        ("[optimizer]\nbeta2 = 1.0", "optimizer.beta2"),
        ("[optimizer]\nmomentum = 0.0\nnesterov = true", "optimizer.nesterov"),
        ("[schedule]\nsteps = 0", "schedule.steps"),
        ("[schedule]\nsteps = 50", "schedule.warmup"),
        ("[clip]\nnorm = -1.0", "clip.norm"),
        ("[sparsity]\ntarget = 1.0", "sparsity.target"),
        ("[sparsity]\ntarget = -0.1", "sparsity.target"),
        ("[sparsity]\nevery = 0", "sparsity.every"),
        ("[sparsity]\nend = 1000", "sparsity.end"),
        ("[sparsity]\nbegin = 800", "sparsity.end"),
        ("[sparsity]\ndistribution = \"erk\"\npattern = \"2:4\"", "sparsity.distribution"),
        ("[sparsity]\nexcluded = [\"\"]", "sparsity.excluded"),
        ("[evaluation]\nquick = 0", "evaluation.quick"),
    ] {
        match error(text) {
            TrainError::Setting { field: f, .. } => assert_eq!(f, field, "{text}"),
            other => panic!("{text}: {other}"),
        }
    }
}

#[test]
fn wrong_types_and_broken_toml_are_syntax_errors() {
    for text in [
        "seed = ",
        "seed = -1",
        "seed = \"a\"",
        "[model]\nlayers = 1.5",
        "[model]\nlayers = 18446744073709551616",
        "[optimizer]\nkind = \"adam\"",
        "[sparsity]\npattern = \"4:2:1\"",
        "[clip]\nnorm = 1.0\n[clip]\nnorm = 2.0",
        "optimizer = 3",
        "\u{0}",
    ] {
        assert!(matches!(error(text), TrainError::RecipeSyntax { .. }), "{text}: {}", error(text));
    }
    let e = Recipe::from_file("/nonexistent.toml".as_ref()).unwrap_err();
    assert!(matches!(e, TrainError::Io { .. }));
}

#[test]
fn paths_are_taken_from_the_folder_of_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("r.toml");
    std::fs::write(&file, "[data]\ntext = \"a.txt\"\nvalidation = \"/b.txt\"").unwrap();
    let r = Recipe::from_file(&file).unwrap();
    assert_eq!(r.data.text.unwrap(), dir.path().join("a.txt"));
    assert_eq!(r.data.validation.unwrap(), std::path::Path::new("/b.txt"));
}

#[test]
fn learning_rate_hits_its_values() {
    let s = crate::ScheduleSettings { steps: 110, warmup: 10, final_fraction: 0.1 };
    // Warm-up 1/10 .. 10/10; at a quarter, half and three quarters of the cosine 0.1 + 0.9 (1 + cos πt) / 2.
    for (step, expected) in [
        (0, 0.1),
        (4, 0.5),
        (9, 1.0),
        (10, 1.0),
        (35, 0.1 + 0.45 * (1.0 + 0.5f64.sqrt())),
        (60, 0.55),
        (85, 0.1 + 0.45 * (1.0 - 0.5f64.sqrt())),
        (110, 0.1),
        (1000, 0.1),
    ] {
        assert!((s.fraction_at(step) - expected).abs() < 1e-12, "{step}");
    }
    let none = crate::ScheduleSettings { warmup: 0, ..s };
    assert!((none.fraction_at(0) - 1.0).abs() < 1e-12);
}

/// What the fuzz target `recipe` does for hours, for a second: a damaged recipe is a recipe or an error, never a panic.
mod damaged {
    use super::*;
    use proptest::prelude::*;

    fn whole() -> String {
        let text = "[sparsity]\ntarget = 0.5\nbegin = 10\nend = 50\nevery = 5\npattern = \"2:4\"\nexcluded = [\"lm_head\"]\n";
        Recipe::from_toml_str(text).map_or_else(|e| panic!("{e}"), |r| r.to_toml())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn recipes_are_read_or_refused(
            at in any::<prop::sample::Index>(),
            length in 0usize..12,
            put in prop_oneof!["\\PC{0,8}", "[-0-9.e]{0,25}", Just("18446744073709551615".to_owned()), Just("nan".to_owned())],
        ) {
            let mut text: Vec<char> = whole().chars().collect();
            let start = at.index(text.len());
            let end = text.len().min(start + length);
            text.splice(start..end, put.chars());
            let text: String = text.into_iter().collect();
            if let Ok(recipe) = Recipe::from_toml_str(&text) {
                let again = Recipe::from_toml_str(&recipe.to_toml());
                prop_assert!(again.is_ok_and(|a| a == recipe), "{text}");
            }
        }
    }
}
