"""Lasso paths and sparse logistic regressions of the Python peers, one JSON line per run.

    python bench/solve/peers_lasso.py DATA_DIR [REPEATS] [NAMES...]

Same data, same penalties, no intercept, as `examples/lasso_path.rs` of rarefy-solve. Lasso: 100 values of alpha
from alpha_max to alpha_max/100. `gap` is the largest duality gap along the path from each solver's own residual,
relative to |y|^2/2n; `subopt` the largest excess over the lowest objective that any run reached, on the same scale.
scikit-learn and celer stop at a gap of 1e-6 on that scale; skglm knows no gap and runs at several tolerances.
Needs numpy, scipy, scikit-learn, celer, skglm, liblinear-official.
"""
import gzip
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sp

warnings.filterwarnings("ignore")


def libsvm(path):
    from sklearn.datasets import load_svmlight_file
    with gzip.open(path) as f:
        x, y = load_svmlight_file(f)
    return sp.csc_matrix(x), y


def california(path):
    z = np.load(path)
    x, y = z["x"].astype(float), z["y"].astype(float)
    return np.asfortranarray((x - x.mean(0)) / x.std(0)), y - y.mean()


def synthetic():
    n, p, per_column = 10_000, 100_000, 10
    draws = 2 * p * per_column + 200 + n
    a, c = np.uint64(6364136223846793005), np.uint64(1442695040888963407)
    powers = np.cumprod(np.full(draws, a, dtype=np.uint64), dtype=np.uint64)
    sums = np.concatenate([[np.uint64(1)], powers[:-1]]).cumsum(dtype=np.uint64)
    state = powers * np.uint64(12345) + c * sums
    u = (state >> np.uint64(33)).astype(float) / 2.0**31
    body = u[: 2 * p * per_column].reshape(-1, 2)
    rows, values = (body[:, 0] * n).astype(int), 2 * body[:, 1] - 1
    x = sp.coo_matrix((values, (rows, np.repeat(np.arange(p), per_column))), shape=(n, p)).tocsc()
    w = np.zeros(p)
    w[np.arange(200) * 500] = 2 * u[2 * p * per_column : 2 * p * per_column + 200] - 1
    return x, x @ w + 0.05 * (2 * u[2 * p * per_column + 200 :] - 1)


def lasso_gaps(x, y, alphas, coefs):
    n, out = len(y), []
    for alpha, w in zip(alphas, coefs.T):
        r = y - x @ w
        top = np.abs(x.T @ r).max()
        scale = min(1, alpha * n / top) if top > 0 else 1
        best = np.clip(y @ r / max(r @ r, 1e-300), 0, None)
        s = min(scale if scale < 1 else best, alpha * n / max(top, 1e-300))
        primal = (r @ r) / 2 + alpha * n * np.abs(w).sum()
        dual = s * (y @ r) - s * s * (r @ r) / 2
        out.append(((primal - dual) / (y @ y / 2), primal / n))
    return np.array(out)


def main():
    folder, repeats, names = Path(sys.argv[1]), int((sys.argv + ["3"])[2]) if len(sys.argv) > 2 else 3, sys.argv[3:]
    import celer
    import liblinear.liblinearutil as liblinear
    import skglm
    from sklearn.linear_model import lasso_path
    from skglm.datafits import Logistic, Quadratic
    from skglm.penalties import L1
    from skglm.solvers import AndersonCD, ProxNewton
    from skglm.utils.jit_compilation import compiled_clone

    def skglm_path(x, y, alphas, tol):
        datafit, solver = Quadratic(), AndersonCD(tol=tol, fit_intercept=False, warm_start=True, ws_strategy="fixpoint")
        return solver.path(x, y, datafit, L1(1.0), alphas=alphas)[1]

    warm_x, warm_y = sp.random(50, 20, 0.3, format="csc", random_state=0), np.arange(50.0)
    skglm_path(warm_x, warm_y, np.array([0.1, 0.05]), 1e-4)
    skglm_path(np.asfortranarray(warm_x.toarray()), warm_y, np.array([0.1, 0.05]), 1e-4)
    for name in ["california", "pcmac.libsvm", "a9a", "synthetic"]:
        if names and name not in names:
            continue
        if name == "california":
            x, y = california(folder / "regression/california_housing.npz")
        elif name == "synthetic":
            x, y = synthetic()
        else:
            x, y = libsvm(folder / f"sparse-linear/{name}.gz")
        n = len(y)
        top = np.abs(x.T @ y).max() / n
        alphas = top * 0.01 ** (np.arange(100) / 99)
        runs = {
            "sklearn": lambda: lasso_path(x, y, alphas=alphas, tol=5e-7, max_iter=100_000)[1],
            "celer": lambda: celer.celer_path(x, y, pb="lasso", alphas=alphas, tol=5e-7, max_iter=1000)[1],
            "skglm 1e-5": lambda: skglm_path(x, y, alphas, 1e-5 * top),
            "skglm 1e-4": lambda: skglm_path(x, y, alphas, 1e-4 * top),
        }
        rows, best = [], np.full(100, np.inf)
        for solver, run in runs.items():
            if name == "synthetic" and solver != "celer" and "all" not in names:
                continue
            times = []
            for _ in range(1 if name == "synthetic" else repeats):
                start = time.perf_counter()
                coefs = np.asarray(run())
                times.append(time.perf_counter() - start)
                if times[-1] > 20:
                    break
            gaps = lasso_gaps(x, y, alphas, coefs)
            best = np.minimum(best, gaps[:, 1])
            rows.append((solver, times, gaps, coefs))
        for solver, times, gaps, coefs in rows:
            subopt = ((gaps[:, 1] - best) / (y @ y / 2 / n)).max()
            print(json.dumps({"work": "lasso-path", "data": name, "solver": solver, "seconds": np.median(times),
                              "min": min(times), "gap": float(gaps[:, 0].max()), "subopt": float(subopt),
                              "nnz": int((coefs[:, -1] != 0).sum()), "objective": float(gaps[-1, 1])}), flush=True)
        if name not in ("pcmac.libsvm", "a9a"):
            continue
        alpha = np.abs(x.T @ y).max() / (2 * n) / 20

        def logistic_gap(w):
            z = y * (x @ w)
            theta = y / (1 + np.exp(z)) / n
            s = min(1, alpha / np.abs(x.T @ theta).max())
            a = np.clip(s * theta * y * n, 1e-300, 1 - 1e-16)
            primal = np.logaddexp(0, -z).mean() + alpha * np.abs(w).sum()
            return (primal + (a * np.log(a) + (1 - a) * np.log1p(-a)).mean()) / np.log(2), primal

        rows_x = sp.csr_matrix(x)
        prob = liblinear.problem(y, rows_x)

        def liblinear_run(eps):
            param = liblinear.parameter(f"-s 6 -c {1 / (alpha * n)} -e {eps} -q -B -1")
            model = liblinear.train(prob, param)
            w, _ = model.get_decfun()
            return np.array(w) * (1 if model.get_labels()[0] == 1 else -1)

        logistic = {}
        for eps in (1e-2, 1e-3, 1e-4, 1e-5):
            logistic[f"liblinear {eps:g}"] = lambda eps=eps: liblinear_run(eps)
        for tol in (1e-6, 1e-9):
            logistic[f"celer {tol:g}"] = lambda tol=tol: celer.LogisticRegression(
                C=1 / (alpha * n), tol=tol, fit_intercept=False, max_iter=100).fit(x, y).coef_.ravel()
        for tol in (1e-6, 1e-5):
            def newton(tol=tol):
                solver = ProxNewton(tol=tol, fit_intercept=False)
                return solver.solve(x, y, compiled_clone(Logistic()), compiled_clone(L1(alpha)))[0]
            logistic[f"skglm prox-newton {tol:g}"] = newton
        for solver, run in logistic.items():
            try:
                w = run()
                times = []
                for _ in range(repeats):
                    start = time.perf_counter()
                    w = run()
                    times.append(time.perf_counter() - start)
                gap, primal = logistic_gap(w)
                print(json.dumps({"work": "logistic", "data": name, "solver": solver, "seconds": np.median(times),
                                  "min": min(times), "gap": float(gap), "nnz": int((w != 0).sum()),
                                  "objective": float(primal)}), flush=True)
            except Exception as e:
                print(json.dumps({"work": "logistic", "data": name, "solver": solver, "error": str(e)[:200]}))


main()
