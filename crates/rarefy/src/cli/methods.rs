//! `rarefy methods`: the table of methods, from the registries.

use rarefy_prune::{METHODS, RULE_METHODS};
use serde_json::json;

use super::{CliResult, Context};
use crate::registry;

/// Arguments of `rarefy methods`.
#[derive(Debug, clap::Args)]
pub(crate) struct MethodsArgs {}

pub(crate) fn run(_args: &MethodsArgs, context: &Context) -> CliResult {
    if context.out.json {
        let list: Vec<_> = registry::all()
            .into_iter()
            .map(|info| {
                let pruning =
                    METHODS.iter().find(|m| m.info.slug == info.slug).map(|m| (m.repro, m.defaults));
                let rules =
                    RULE_METHODS.iter().find(|m| m.info.slug == info.slug).map(|m| (m.repro, m.defaults));
                let entry = pruning.or(rules);
                json!({
                    "slug": info.slug,
                    "name": info.name,
                    "family": info.family,
                    "paper": info.paper,
                    "command": format!("rarefy {}", info.command),
                    "maturity": info.maturity,
                    "summary": info.summary,
                    // Methods of the other crates have an experiment of their own name, and no settings beside the flags.
                    "repro": entry.map_or(info.slug, |(repro, _)| repro),
                    "settings": entry.map(|(_, defaults)| defaults()),
                })
            })
            .collect();
        return context.out.json_value(&json!(list));
    }
    let mut table = context.out.table(&["method", "family", "command", "maturity", "what it does", "paper"]);
    for info in registry::all() {
        table.add_row([
            info.slug,
            info.family,
            &format!("rarefy {}", info.command),
            &info.maturity.to_string(),
            info.summary,
            info.paper,
        ]);
    }
    context.out.data(&table.to_string())
}
