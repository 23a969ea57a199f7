"""Makes glm.json: small problems solved by scikit-learn to full precision.

    python tests/golden/solve/glm.py > tests/golden/solve/glm.json
"""
import json

import numpy as np
import sklearn
from sklearn.linear_model import ElasticNet, HuberRegressor, Lasso, LogisticRegression  # noqa: F401

rng = np.random.default_rng(7)
n, p = 30, 12
x = np.round(rng.normal(size=(n, p)) * (rng.random((n, p)) < 0.6), 3) + 0.0
w = np.where(np.arange(p) % 3 == 0, rng.normal(size=p), 0)
y = np.round(x @ w + 1.5 + 0.3 * rng.normal(size=n), 3)
s = np.round(rng.random(n) + 0.2, 2)
label = np.where(y > np.median(y), 1.0, -1.0)
cases = []


def squared(name, model, weight=None, **settings):
    model.fit(x, y, sample_weight=weight)
    cases.append({"name": name, "settings": settings, "alpha": model.alpha, "weighted": weight is not None,
                  "coef": model.coef_.tolist(), "intercept": float(model.intercept_)})


tight = dict(tol=1e-14, max_iter=1_000_000)
squared("lasso", Lasso(alpha=0.05, **tight))
squared("lasso without intercept", Lasso(alpha=0.05, fit_intercept=False, **tight), fit_intercept=False)
squared("weighted lasso", Lasso(alpha=0.08, **tight), s)
squared("positive lasso", Lasso(alpha=0.02, positive=True, **tight), positive=True)
squared("elastic net", ElasticNet(alpha=0.1, l1_ratio=0.3, **tight), l1_ratio=0.3)
squared("weighted elastic net", ElasticNet(alpha=0.1, l1_ratio=0.7, **tight), s, l1_ratio=0.7)
alpha = 0.02
m = LogisticRegression(C=1 / (alpha * n), l1_ratio=1.0, penalty="l1", solver="saga", tol=1e-14, max_iter=1_000_000)
m.fit(x, label)
cases.append({"name": "logistic", "settings": {"loss": "logistic"}, "alpha": alpha, "weighted": False,
              "coef": m.coef_.ravel().tolist(), "intercept": float(m.intercept_[0])})
m = LogisticRegression(C=1 / (alpha * n), l1_ratio=1.0, penalty="l1", solver="saga", tol=1e-14, max_iter=1_000_000,
                       fit_intercept=False)
m.fit(x, label)
cases.append({"name": "logistic without intercept", "settings": {"loss": "logistic", "fit_intercept": False},
              "alpha": alpha, "weighted": False, "coef": m.coef_.ravel().tolist(), "intercept": 0.0})
print(json.dumps({"versions": {"scikit-learn": sklearn.__version__, "numpy": np.__version__}, "n": n, "p": p,
                  "x": x.ravel().tolist(), "y": y.tolist(), "s": s.tolist(), "label": label.tolist(),
                  "cases": cases}))
