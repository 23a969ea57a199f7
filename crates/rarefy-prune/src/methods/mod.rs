//! The registry of post-training methods.

mod cats;
mod double_sparsity;
mod magnitude;
mod sparsegpt;
mod wanda;

use rarefy_sparsity::MethodInfo;
use serde::{Serialize, de::DeserializeOwned};

pub use cats::{Cats, CatsPlace, CatsSettings};
pub use double_sparsity::{DoubleSparsity, DoubleSparsitySettings};
pub use magnitude::{Magnitude, MagnitudeSettings};
pub use sparsegpt::{MaskRule, SparseGpt, SparseGptSettings};
pub use wanda::{Granularity, Wanda, WandaSettings};

use crate::{LayerPruner, PruneError, RuleMethod, SettingError};

/// One row of the registry.
#[derive(Debug)]
pub struct MethodEntry {
    /// Name on the command line, paper, family, maturity.
    pub info: &'static MethodInfo,
    /// Name of the published experiment that exercises the method, and of its specification.
    pub repro: &'static str,
    /// The settings with all defaults, as JSON.
    pub defaults: fn() -> serde_json::Value,
    /// Builds the method from JSON settings; absent keys take their defaults.
    pub build: fn(&serde_json::Value) -> Result<Box<dyn LayerPruner>, PruneError>,
}

/// All methods of this crate.
pub const METHODS: &[&MethodEntry] = &[&magnitude::ENTRY, &wanda::ENTRY, &sparsegpt::ENTRY];

/// One row of the registry of methods that write rules for running a model instead of zeros.
#[derive(Debug)]
pub struct RuleEntry {
    /// Name on the command line, paper, family, maturity.
    pub info: &'static MethodInfo,
    /// Name of the published experiment that exercises the method, and of its specification.
    pub repro: &'static str,
    /// The settings with all defaults, as JSON.
    pub defaults: fn() -> serde_json::Value,
    /// Builds the method from JSON settings; absent keys take their defaults.
    pub build: fn(&serde_json::Value) -> Result<Box<dyn RuleMethod>, PruneError>,
}

/// All methods of this crate that write rules.
pub const RULE_METHODS: &[&RuleEntry] = &[&cats::ENTRY, &double_sparsity::ENTRY];

/// Finds a method by its name.
///
/// # Errors
/// [`PruneError::UnknownMethod`] listing the known names.
pub fn find(name: &str) -> Result<&'static MethodEntry, PruneError> {
    METHODS.iter().find(|m| m.info.slug == name).copied().ok_or_else(|| {
        let known: Vec<&str> = METHODS.iter().map(|m| m.info.slug).collect();
        PruneError::UnknownMethod { name: name.into(), known: known.join(", ") }
    })
}

/// Settings of a method: what [`MethodEntry::build`] needs to know about them.
trait Settings: Default + Serialize + DeserializeOwned {
    fn validate(&self) -> Result<(), SettingError>;
}

fn parse<S: Settings>(method: &'static str, value: &serde_json::Value) -> Result<S, PruneError> {
    let settings: S = if value.is_null() {
        S::default()
    } else {
        S::deserialize(value).map_err(|e| PruneError::SettingsFormat { method, message: e.to_string() })?
    };
    settings.validate()?;
    Ok(settings)
}

fn to_json<S: Serialize>(settings: &S) -> serde_json::Value {
    serde_json::to_value(settings).unwrap_or(serde_json::Value::Null)
}

/// The settings as they took effect: N:M fixes the sparsity, whatever the field says.
fn in_effect<S: Serialize>(settings: &S, pattern: rarefy_sparsity::Pattern) -> serde_json::Value {
    let mut value = to_json(settings);
    if let (Some(fields), Some(sparsity)) = (value.as_object_mut(), pattern.implied_sparsity()) {
        fields.insert("sparsity".into(), sparsity.into());
    }
    value
}

fn defaults<S: Settings>() -> serde_json::Value {
    to_json(&S::default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn registry_is_complete_and_defaults_build() {
        let names: Vec<&str> = METHODS.iter().map(|m| m.info.slug).collect();
        assert_eq!(names, ["magnitude", "wanda", "sparsegpt"]);
        for method in METHODS {
            assert_eq!(method.repro, "sparsegpt-wanda-baselines");
            let built = (method.build)(&serde_json::Value::Null).unwrap();
            assert_eq!(built.settings(), (method.defaults)());
            assert_eq!(built.info(), method.info);
            // What is recorded builds the same method again.
            let again = (method.build)(&built.settings()).unwrap();
            assert_eq!(again.settings(), built.settings());
            let fixed = (method.build)(&json!({"pattern": "1:4", "sparsity": 0.5})).unwrap().settings();
            assert_eq!(fixed["sparsity"], json!(0.75), "what is recorded is what was done");
        }
    }

    #[test]
    fn rule_methods_build_from_what_they_record() {
        for method in RULE_METHODS {
            let built = (method.build)(&serde_json::Value::Null).unwrap();
            assert_eq!((built.settings(), built.info()), ((method.defaults)(), method.info));
            assert_eq!(method.repro, method.info.slug);
            let error = (method.build)(&json!({"sparsty": 0.5})).err().unwrap().to_string();
            assert!(error.contains("sparsty") && error.contains(method.info.slug), "{error}");
        }
    }

    #[test]
    fn unknown_names_keys_and_values_are_named() {
        let error = find("wonda").unwrap_err().to_string();
        assert!(error.contains("wonda") && error.contains("magnitude, wanda, sparsegpt"));
        for method in METHODS {
            let error = (method.build)(&json!({"sparsty": 0.5})).err().unwrap().to_string();
            assert!(error.contains("sparsty") && error.contains(method.info.slug), "{error}");
            for bad in [1.0, -0.1, 2.0] {
                let error = (method.build)(&json!({"sparsity": bad})).err().unwrap().to_string();
                assert!(error.contains("`sparsity`") && error.contains("[0, 1)"), "{error}");
            }
            let error = (method.build)(&json!({"pattern": "5:4"})).err().unwrap().to_string();
            assert!(error.contains("pattern") || error.contains("5:4"), "{error}");
        }
    }
}
