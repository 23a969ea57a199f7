//! `rarefy methods`: the table of methods, from the registries.

use rarefy_prune::{METHODS, RULE_METHODS};
use serde_json::json;

use super::{CliResult, Context};

/// Arguments of `rarefy methods`.
#[derive(Debug, clap::Args)]
pub(crate) struct MethodsArgs {}

pub(crate) fn run(_args: &MethodsArgs, context: &Context) -> CliResult {
    if context.out.json {
        let pruning = METHODS.iter().map(|m| (m.info, m.repro, (m.defaults)()));
        let rules = RULE_METHODS.iter().map(|m| (m.info, m.repro, (m.defaults)()));
        let list: Vec<_> = pruning
            .chain(rules)
            .map(|(info, repro, settings)| {
                json!({
                    "slug": info.slug,
                    "name": info.name,
                    "family": info.family,
                    "paper": info.paper,
                    "command": format!("rarefy {}", info.command),
                    "maturity": info.maturity,
                    "summary": info.summary,
                    "repro": repro,
                    "settings": settings,
                })
            })
            .collect();
        return context.out.json_value(&json!(list));
    }
    let mut table = context.out.table(&["method", "family", "command", "maturity", "what it does", "paper"]);
    for info in crate::registry::all() {
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
