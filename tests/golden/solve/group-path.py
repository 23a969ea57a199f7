"""Makes group-path.json: group lasso paths by celer, lasso paths by scikit-learn, to high precision.

    python tests/golden/solve/group-path.py > tests/golden/solve/group-path.json
"""
import json

import celer
import numpy as np
import sklearn
from sklearn.linear_model import lasso_path

rng = np.random.default_rng(11)
n, p = 40, 12
x = np.round(rng.normal(size=(n, p)) * (rng.random((n, p)) < 0.7), 3) + 0.0
x[:, 4] = np.round(0.7 * x[:, 3] + 0.3 * x[:, 4], 3)
groups = [[0, 5, 7], [1], [2, 3, 4], [6, 8], [9, 10, 11]]
w = np.zeros(p)
w[[0, 5, 7]], w[[6, 8]] = [1.0, -2.0, 0.5], [0.7, 0.7]
y = np.round(x @ w + 1.5 + 0.3 * rng.normal(size=n), 3)
cases = []
for fit_intercept in [True, False]:
    for weights in [np.ones(5), np.sqrt([len(g) for g in groups])]:
        c = x.T @ ((y - y.mean()) if fit_intercept else y) / n
        top = max(np.linalg.norm(c[g]) / o for g, o in zip(groups, weights))
        alphas = top * np.array([0.8, 0.4, 0.1, 0.01])
        coefs, intercepts = [], []
        for alpha in alphas:
            m = celer.GroupLasso(groups=groups, alpha=alpha, weights=weights, fit_intercept=fit_intercept, tol=1e-15,
                                 max_iter=1000, max_epochs=1_000_000).fit(x, y)
            coefs.append(m.coef_.tolist())
            intercepts.append(float(m.intercept_))
        cases.append({"name": "celer GroupLasso", "groups": groups, "weights": weights.tolist(),
                      "fit_intercept": fit_intercept, "alphas": alphas.tolist(), "coef": coefs,
                      "intercept": intercepts})
xc, yc = x - x.mean(axis=0), y - y.mean()
alphas, coefs, _ = lasso_path(xc, yc, alphas=[0.5, 0.1, 0.02], tol=1e-14, max_iter=1_000_000)
cases.append({"name": "scikit-learn lasso_path", "groups": [[j] for j in range(p)], "weights": [1.0] * p,
              "fit_intercept": True, "alphas": alphas.tolist(), "coef": coefs.T.tolist(),
              "intercept": [float(y.mean() - x.mean(axis=0) @ c) for c in coefs.T]})
print(json.dumps({"versions": {"celer": celer.__version__, "scikit-learn": sklearn.__version__,
                               "numpy": np.__version__},
                  "n": n, "p": p, "x": x.ravel().tolist(), "y": y.tolist(), "cases": cases}))
