//! `rarefy methods`: the table of methods, from the registries.

use rarefy_prune::METHODS;
use serde_json::json;

use super::{CliResult, Context};

/// Arguments of `rarefy methods`.
#[derive(Debug, clap::Args)]
pub(crate) struct MethodsArgs {}

pub(crate) fn run(_args: &MethodsArgs, context: &Context) -> CliResult {
    if context.out.json {
        let list: Vec<_> = METHODS
            .iter()
            .map(|m| {
                json!({
                    "slug": m.info.slug,
                    "name": m.info.name,
                    "family": m.info.family,
                    "paper": m.info.paper,
                    "command": format!("rarefy {}", m.info.command),
                    "maturity": m.info.maturity,
                    "summary": m.info.summary,
                    "repro": m.repro,
                    "settings": (m.defaults)(),
                })
            })
            .collect();
        return context.out.json_value(&json!(list));
    }
    let mut table = context.out.table(&["method", "family", "command", "maturity", "what it does", "paper"]);
    for method in METHODS {
        let info = method.info;
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
