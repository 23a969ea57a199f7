//! `rarefy solve lasso` and `rarefy solve logistic`.

use rarefy_data::arrays::Matrix;
use rarefy_solve::glm::{
    AlphaGrid, Coefficients, CrossValidationSettings, GlmSettings, Loss, Problem, cross_validate, path, solve,
};
use rarefy_solve::{Design, LinOp as _, Solution};
use serde_json::{Map, Value, json};

use super::super::{CliError, CliResult, Context};
use super::answer::{Answer, Ending, finish, watched};
use super::data::{Samples, TargetArgs};
use super::{AnswerArgs, positive};

/// Arguments of both.
#[derive(Debug, clap::Args)]
pub(super) struct RegressionArgs {
    #[command(flatten)]
    data: TargetArgs,
    /// Strength of the penalty [default: chosen by cross-validation]
    #[arg(long, value_name = "A", value_parser = positive)]
    alpha: Option<f64>,
    /// Share of the l1 penalty, in (0, 1]; 1 is the lasso
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    l1_ratio: f64,
    /// Solve the whole path of alphas and write the coefficients of each as one row
    #[arg(long, conflicts_with = "alpha")]
    path: bool,
    /// Number of alphas of the path, falling from the smallest one with an empty model
    #[arg(long, value_name = "N", default_value_t = 100)]
    alphas: usize,
    /// Smallest alpha of the path, relative to its largest
    #[arg(long, value_name = "R", default_value_t = 1e-3)]
    alpha_ratio: f64,
    /// Number of folds of the cross-validation
    #[arg(long, value_name = "N", default_value_t = 5)]
    folds: usize,
    /// Take the largest alpha within one standard error of the best
    #[arg(long, conflicts_with_all = ["alpha", "path"])]
    one_standard_error: bool,
    /// Penalise each coefficient in units of its feature's standard deviation
    #[arg(long)]
    standardize: bool,
    /// Only coefficients of at least 0
    #[arg(long)]
    positive: bool,
    /// Fit no constant
    #[arg(long)]
    no_intercept: bool,
    /// Weights of the samples, one for each row
    #[arg(long, value_name = "FILE")]
    sample_weight: Option<std::path::PathBuf>,
    /// Huber loss, linear beyond this distance (lasso only)
    #[arg(long, value_name = "DELTA", value_parser = positive)]
    huber: Option<f64>,
    /// Duality gap at which to stop, relative to the loss of the best constant model
    #[arg(long, value_name = "T", default_value_t = 1e-6)]
    tolerance: f64,
    #[command(flatten)]
    answer: AnswerArgs,
}

pub(super) fn lasso(args: &RegressionArgs, context: &Context) -> CliResult {
    let loss = args.huber.map_or(Loss::Squared, |delta| Loss::Huber { delta });
    run(args, "lasso", loss, args.data.read()?, Map::new(), context)
}

pub(super) fn logistic(args: &RegressionArgs, context: &Context) -> CliResult {
    if args.huber.is_some() {
        return Err(CliError::usage("--huber is a loss of regression", "leave it out, or solve `lasso`"));
    }
    let mut samples = args.data.read()?;
    let mut classes = samples.y.clone();
    classes.sort_by(f64::total_cmp);
    classes.dedup();
    let [low, high] = classes[..] else {
        let hint = "logistic regression separates two; merge classes, or fit one class against the rest";
        return Err(CliError::usage(format!("the targets hold {} classes", classes.len()), hint));
    };
    samples.y.iter_mut().for_each(|v| *v = if v.total_cmp(&high).is_eq() { 1.0 } else { -1.0 });
    let json = Map::from_iter([("classes".to_owned(), json!([low, high]))]);
    run(args, "logistic", Loss::Logistic, samples, json, context)
}

fn run(
    args: &RegressionArgs,
    name: &'static str,
    loss: Loss,
    samples: Samples,
    json: Map<String, Value>,
    context: &Context,
) -> CliResult {
    let settings = GlmSettings {
        loss,
        l1_ratio: args.l1_ratio,
        penalty_weights: args.standardize.then(|| deviations(&samples.x)),
        positive: args.positive,
        fit_intercept: !args.no_intercept,
        tolerance: args.tolerance,
        ..GlmSettings::default()
    };
    let weights = args.sample_weight.as_deref().map(super::data::vector).transpose()?;
    let problem = Problem { x: &samples.x, y: &samples.y, sample_weight: weights.as_deref() };
    let grid = AlphaGrid { values: None, count: args.alphas, ratio: args.alpha_ratio };
    let report = Report { args, name, samples: &samples, settings: &settings, json, context };
    if args.path {
        let found = watched(&args.answer, name, context, |m| path(&problem, &grid, &settings, m))?;
        return report.path(&found);
    }
    if let Some(alpha) = args.alpha {
        let s = watched(&args.answer, name, context, |m| solve(&problem, alpha, &settings, None, m))?;
        return report.one(&s, alpha, &[]);
    }
    let choice = CrossValidationSettings {
        folds: args.folds,
        seed: context.seed.unwrap_or(0),
        grid,
        model: settings.clone(),
    };
    let found = watched(&args.answer, name, context, |m| cross_validate(&problem, &choice, m))?;
    let at = if args.one_standard_error { found.one_standard_error } else { found.best };
    let chosen = if at == found.best {
        found.solution
    } else {
        let alpha = found.alphas[at];
        watched(&args.answer, name, context, |m| {
            solve(&problem, alpha, &settings, Some(&found.solution.x), m)
        })?
    };
    let facts = [
        (
            "loss on samples left out".to_owned(),
            format!("{:.4e} ± {:.1e}", found.mean_loss[at], found.standard_error[at]),
        ),
        ("loss of the constant model there".to_owned(), format!("{:.4e}", found.mean_loss[0])),
    ];
    let mut report = report;
    report.json.insert(
        "cross_validation".to_owned(),
        json!({
            "alphas": found.alphas,
            "mean_loss": found.mean_loss,
            "standard_error": found.standard_error,
            "folds": args.folds,
        }),
    );
    report.one(&chosen, found.alphas[at], &facts)
}

/// Standard deviation of each column; 1 for a constant one, whose coefficient is 0 anyway with an intercept.
fn deviations(x: &Design) -> Vec<f64> {
    let n = x.n_rows() as f64;
    let deviation = |j: usize| {
        let column = x.column(j);
        let mean = column.sum() / n;
        (column.norm_sq() / n - mean * mean).max(0.0).sqrt()
    };
    (0..x.n_cols()).map(deviation).map(|d| if d > 0.0 && d.is_finite() { d } else { 1.0 }).collect()
}

struct Report<'a> {
    args: &'a RegressionArgs,
    name: &'static str,
    samples: &'a Samples,
    settings: &'a GlmSettings,
    json: Map<String, Value>,
    context: &'a Context,
}

/// Coefficients that are printed.
const SHOWN: usize = 10;

impl Report<'_> {
    fn formula(&self) -> String {
        let loss = match self.settings.loss {
            Loss::Logistic => "ln(1 + exp(-y z))".to_owned(),
            Loss::Huber { delta } => format!("huber_{delta}(y - z)"),
            _ => "(y - z)^2 / 2".to_owned(),
        };
        let penalty = match (self.settings.l1_ratio, self.settings.penalty_weights.is_some()) {
            (1.0, false) => "|w|_1".to_owned(),
            (1.0, true) => "sum sd_j |w_j|".to_owned(),
            (r, false) => format!("({r} |w|_1 + {} |w|_2^2)", (1.0 - r) / 2.0),
            (r, true) => format!("sum sd_j ({r} |w_j| + {} w_j^2)", (1.0 - r) / 2.0),
        };
        let mean = if self.args.sample_weight.is_some() { "weighted mean" } else { "mean" };
        format!("min over w, b: {mean} of {loss} + alpha {penalty}, z = x w + b")
    }

    fn feature(&self, j: usize) -> String {
        let name = self.samples.names.as_ref().and_then(|n| n.get(j));
        name.cloned().unwrap_or_else(|| format!("feature {}", j + 1))
    }

    fn one(mut self, s: &Solution<Coefficients>, alpha: f64, more: &[(String, String)]) -> CliResult {
        let p = s.x.n_features;
        let mut facts = vec![
            ("alpha".to_owned(), format!("{alpha:.6e}")),
            ("samples x features".to_owned(), format!("{} x {p}", self.samples.y.len())),
            ("coefficients that are not 0".to_owned(), s.x.nnz().to_string()),
        ];
        facts.extend_from_slice(more);
        if self.settings.fit_intercept {
            facts.push(("constant".to_owned(), format!("{:.6}", s.x.intercept)));
        }
        let mut largest: Vec<usize> = (0..s.x.nnz()).collect();
        largest.sort_by(|a, b| s.x.values[*b].abs().total_cmp(&s.x.values[*a].abs()).then(a.cmp(b)));
        for k in largest.iter().take(SHOWN) {
            facts.push((self.feature(s.x.indices[*k]), format!("{:+.6}", s.x.values[*k])));
        }
        if largest.len() > SHOWN {
            facts.push(("…".to_owned(), format!("{} more", largest.len() - SHOWN)));
        }
        let names: Option<Vec<&String>> =
            self.samples.names.as_ref().map(|n| s.x.indices.iter().filter_map(|j| n.get(*j)).collect());
        self.json.extend([
            ("alpha".to_owned(), json!(alpha)),
            ("coefficients".to_owned(), json!(s.x)),
            ("names".to_owned(), json!(names)),
            ("settings".to_owned(), json!(self.settings)),
        ]);
        let result = Matrix::Dense { n_rows: p, n_cols: 1, values: s.x.to_dense() };
        self.finish(Ending::from(s), facts, result)
    }

    fn path(mut self, found: &rarefy_solve::glm::Path) -> CliResult {
        let solutions = &found.solutions;
        let p = self.samples.x.n_cols();
        let mut facts = vec![
            ("samples x features".to_owned(), format!("{} x {p}", self.samples.y.len())),
            ("alphas".to_owned(), format!("{} of {}", solutions.len(), found.alphas.len())),
        ];
        let step = solutions.len().div_ceil(SHOWN).max(1);
        for (alpha, s) in found.alphas.iter().zip(solutions).step_by(step) {
            facts.push((
                format!("alpha {alpha:.4e}"),
                format!("{} coefficients, objective {:.6e}", s.x.nnz(), s.objective),
            ));
        }
        let table: Vec<Value> = found
            .alphas
            .iter()
            .zip(solutions)
            .map(|(alpha, s)| {
                json!({
                    "alpha": alpha,
                    "objective": s.objective,
                    "status": s.status,
                    "residuals": s.residuals,
                    "coefficients": s.x,
                })
            })
            .collect();
        self.json.extend([
            ("path".to_owned(), Value::Array(table)),
            ("settings".to_owned(), json!(self.settings)),
        ]);
        let result = Matrix::Dense {
            n_rows: solutions.len(),
            n_cols: p,
            values: solutions.iter().flat_map(|s| s.x.to_dense()).collect(),
        };
        let Some(last) = solutions.last() else {
            return Err(CliError::TargetMissed { message: found.status.to_string() });
        };
        let mut ending = Ending::from(last);
        (ending.status, ending.seconds) = (found.status, found.seconds);
        ending.iterations = solutions.iter().map(|s| s.iterations).sum();
        self.finish(ending, facts, result)
    }

    fn finish(self, ending: Ending, facts: Vec<(String, String)>, result: Matrix) -> CliResult {
        let formula = self.formula();
        let answer =
            Answer { problem: self.name, formula, ending, facts, json: self.json, result: Some(result) };
        finish(answer, &self.args.answer, self.context)
    }
}
