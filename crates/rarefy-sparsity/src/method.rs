//! What the tables and the documentation know about a published method.

use std::fmt;

/// Identity of a published method: one row of `rarefy methods`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodInfo {
    /// The identifier on the command line, in recipes and in file names: `"sparsegpt"`.
    pub slug: &'static str,
    /// The name its authors gave it: `"SparseGPT"`.
    pub name: &'static str,
    /// The family it belongs to: `"post-training pruning"`.
    pub family: &'static str,
    /// Title, venue, year and arXiv identifier.
    pub paper: &'static str,
    /// A command that uses it.
    pub command: &'static str,
    /// How far it can be relied on.
    pub maturity: Maturity,
    /// What it does, in one sentence.
    pub summary: &'static str,
}

/// How far a method can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Maturity {
    /// Works and is tested; settings and outputs may still change.
    Preview,
    /// Settings and outputs change only with a note in the changelog.
    Stable,
}

impl fmt::Display for Maturity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Maturity::Preview => "preview",
            Maturity::Stable => "stable",
        })
    }
}
