//! `rarefy solve regress`: dense least squares, whole or in one pass.

use std::time::Instant;

use faer::{Mat, MatRef};
use rarefy_data::arrays::Matrix;
use rarefy_solve::linalg::{
    LeastSquaresSettings, NnlsSettings, StreamedQr, least_squares, nnls, solve_sketched,
};
use rarefy_solve::methods::linf_regression::{self, LinfSettings};
use rarefy_solve::methods::lp_sensitivity_sampling::{self as lp, LpSettings};
use rarefy_solve::sketch::SketchKind;
use rarefy_solve::{Csc, Design, LinOp as _, Monitor, Residual, Solution, SolveError, Status};
use serde_json::{Map, Value, json};

use super::super::{CliError, CliResult, Context};
use super::answer::{Answer, Ending, finish, watched};
use super::data::TargetArgs;
use super::{AnswerArgs, positive};

/// How it is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// To rounding, through a sketched preconditioner (in one pass: through a QR of blocks)
    LeastSquares,
    /// From a sketch alone, with a bound on every single coefficient
    LinfRegression,
    /// In the l_p norm, on rows sampled by their influence
    LpSensitivitySampling,
    /// With coefficients of at least 0
    Nnls,
}

/// The random map that makes the problem small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Hadamard matrix behind random signs
    Srht,
    /// The same, pooled: the one with a proof for single coefficients
    BalancedPooling,
    /// One random sign for each sample
    CountSketch,
    /// Eight random signs for each sample
    Osnap,
    /// Independent normal entries
    Gaussian,
}

impl Kind {
    fn kind(self) -> SketchKind {
        match self {
            Kind::Srht => SketchKind::Srht,
            Kind::BalancedPooling => SketchKind::BalancedPooling,
            Kind::CountSketch => SketchKind::CountSketch,
            Kind::Osnap => SketchKind::Osnap { nonzeros: 8 },
            Kind::Gaussian => SketchKind::Gaussian,
        }
    }
}

/// Arguments of `rarefy solve regress`.
#[derive(Debug, clap::Args)]
pub(super) struct RegressArgs {
    #[command(flatten)]
    data: TargetArgs,
    /// How
    #[arg(long, value_enum, default_value_t = How::LeastSquares)]
    method: How,
    /// The norm (lp-sensitivity-sampling); 1 does not mind outliers
    #[arg(short, value_name = "P", default_value_t = 1.0)]
    p: f64,
    /// Random map of the sketching methods
    #[arg(long, value_enum, default_value_t = Kind::Srht)]
    sketch: Kind,
    /// Rows of the sketch or the sample [default: that of the method]
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Error of the guarantee (linf-regression, lp-sensitivity-sampling)
    #[arg(long, value_name = "E", default_value_t = 0.5, value_parser = positive)]
    epsilon: f64,
    /// Refine the answer of a sketch to rounding (linf-regression)
    #[arg(long)]
    refine: bool,
    /// Read the file once, in blocks of rows: its size does not matter (least-squares)
    #[arg(long)]
    stream: bool,
    /// Number of features, needed to stream libsvm text
    #[arg(long, value_name = "N", requires = "stream")]
    features: Option<usize>,
    /// Fit no constant
    #[arg(long)]
    no_intercept: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// A solver with its problem and settings.
type Solve<'a> = dyn FnMut(&mut Monitor<'_>) -> Result<Solution<Vec<f64>>, SolveError> + 'a;

/// Rows of a block of a stream.
const BLOCK: usize = 16_384;
/// Coefficients that are printed.
const SHOWN: usize = 10;

pub(super) fn run(args: &RegressArgs, context: &Context) -> CliResult {
    if args.stream {
        if args.method != How::LeastSquares {
            return Err(CliError::usage(
                "`--stream` works for least-squares",
                "leave it out, or the other method",
            ));
        }
        return stream(args, context);
    }
    let samples = args.data.read()?;
    let x = if args.no_intercept { samples.x } else { with_ones(samples.x)? };
    let seed = context.seed.unwrap_or(0);
    let y = &samples.y;
    let watch = |f: &mut Solve<'_>| watched(&args.answer, "regress", context, f);
    let (s, settings) = match args.method {
        How::LeastSquares => {
            let settings = LeastSquaresSettings {
                sketch: args.sketch.kind(),
                rows: args.rows,
                seed,
                ..LeastSquaresSettings::default()
            };
            (watch(&mut |m| least_squares(&x, y, &settings, m))?, json!(settings))
        }
        How::LinfRegression => {
            let settings = LinfSettings {
                sketch: args.sketch.kind(),
                rows: args.rows,
                epsilon: args.epsilon,
                refine: args.refine,
                seed,
                ..LinfSettings::default()
            };
            (watch(&mut |m| linf_regression::solve(&x, y, &settings, m))?, json!(settings))
        }
        How::LpSensitivitySampling => {
            let settings = LpSettings {
                p: args.p,
                rows: args.rows,
                epsilon: args.epsilon,
                seed,
                ..LpSettings::default()
            };
            (watch(&mut |m| Ok(lp::solve(&x, y, &settings, m)?.map(|fit| fit.x)))?, json!(settings))
        }
        How::Nnls => {
            let settings = NnlsSettings::default();
            (watch(&mut |m| nnls(&x, y, &settings, m))?, json!(settings))
        }
    };
    report(args, &s, y.len(), samples.names.as_deref(), settings, context)
}

/// One pass with a QR of blocks.
fn stream(args: &RegressArgs, context: &Context) -> CliResult {
    let started = Instant::now();
    let (d, names, blocks) = args.data.blocks(args.features, BLOCK)?;
    let width = d + 1 + usize::from(!args.no_intercept);
    let mut qr = StreamedQr::new(width);
    let mut shown = context.out.activity("regress");
    for block in blocks {
        let block = block?;
        let n = block.y.len();
        let value = |i: usize, j: usize| match j {
            j if j < d => block.x[i * d + j],
            j if j + 1 == width => block.y[i],
            _ => 1.0,
        };
        qr.push(Mat::from_fn(n, width, value).as_ref())?;
        shown.label(&format!("regress: {} samples read", qr.rows_read()));
    }
    shown.finish();
    let n = qr.rows_read();
    let r = qr.finish();
    let (x, whitening) = solve_sketched(r.as_ref())?;
    let residual = residual_norm(r.as_ref(), &x);
    let s = Solution {
        x,
        status: Status::Converged,
        objective: 0.5 * residual * residual,
        residuals: vec![
            Residual { name: "residual", value: residual },
            Residual { name: "rank", value: whitening.rank() as f64 },
        ],
        iterations: 1,
        trace: vec![],
        seconds: started.elapsed().as_secs_f64(),
    };
    report(args, &s, n, names.as_deref(), json!({ "method": "qr of blocks", "block": BLOCK }), context)
}

/// `‖R_A x − r_b‖`, which is the norm of the residual of the whole.
fn residual_norm(r: MatRef<'_, f64>, x: &[f64]) -> f64 {
    let d = x.len();
    let row = |i: usize| (0..d).map(|j| r[(i, j)] * x[j]).sum::<f64>() - r[(i, d)];
    (0..r.nrows()).map(|i| row(i).powi(2)).sum::<f64>().sqrt()
}

fn report(
    args: &RegressArgs,
    s: &Solution<Vec<f64>>,
    n: usize,
    names: Option<&[String]>,
    settings: Value,
    context: &Context,
) -> CliResult {
    let mut w = s.x.clone();
    let constant = if args.no_intercept { None } else { w.pop() };
    let mut facts = vec![("samples x features".to_owned(), format!("{n} x {}", w.len()))];
    if let Some(constant) = constant {
        facts.push(("constant".to_owned(), format!("{constant:.6}")));
    }
    let mut largest: Vec<usize> = (0..w.len()).collect();
    largest.sort_by(|a, b| w[*b].abs().total_cmp(&w[*a].abs()).then(a.cmp(b)));
    for j in largest.iter().take(SHOWN) {
        let name = names.and_then(|n| n.get(*j)).cloned().unwrap_or_else(|| format!("feature {}", j + 1));
        facts.push((name, format!("{:+.6}", w[*j])));
    }
    if largest.len() > SHOWN {
        facts.push(("…".to_owned(), format!("{} more", largest.len() - SHOWN)));
    }
    let json = Map::from_iter([
        ("coefficients".to_owned(), json!(w)),
        ("intercept".to_owned(), json!(constant)),
        ("names".to_owned(), json!(names)),
        ("samples".to_owned(), json!(n)),
        ("settings".to_owned(), settings),
    ]);
    let formula = match args.method {
        How::Nnls => "min over w >= 0, b >= 0: sum of (y - x w - b)^2 / 2".to_owned(),
        How::LpSensitivitySampling => format!("min over w, b: sum of |y - x w - b|^{}", args.p),
        _ => "min over w, b: sum of (y - x w - b)^2 / 2".to_owned(),
    };
    let result = Some(Matrix::Dense { n_rows: w.len(), n_cols: 1, values: w });
    let ending = Ending::from(s);
    finish(Answer { problem: "regress", formula, ending, facts, json, result }, &args.answer, context)
}

/// The design with a last column of ones.
fn with_ones(x: Design) -> CliResult<Design> {
    let (n, p) = (x.n_rows(), x.n_cols());
    Ok(match x {
        Design::Dense(a) => Mat::from_fn(n, p + 1, |i, j| if j < p { a[(i, j)] } else { 1.0 }).into(),
        Design::Csc(a) => {
            let end = a.nnz() + n;
            let indptr = a.indptr().iter().copied().chain([end]).collect();
            let indices = a.indices().iter().copied().chain(0..n as u32).collect();
            let values = a.values().iter().copied().chain(std::iter::repeat_n(1.0, n)).collect();
            Csc::from_parts(n, p + 1, indptr, indices, values)?.into()
        }
    })
}
