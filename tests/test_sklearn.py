"""The estimators keep scikit-learn's contract, find a size, and say no in one line."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.utils.estimator_checks import estimator_checks_generator

import shrinknets_fast as sn
from shrinknets_fast.tables import objectives, search
from shrinknets_fast.tables.training import Recipe, Run

QUICK = {"hidden_layer_sizes": 16, "epochs": 15, "lam": 3e-3}
KINDS = [sn.sklearn.ShrinkClassifier, sn.sklearn.ShrinkRegressor]
LEARNED = {"check_classifiers_train", "check_regressors_train"}  # ask for a good score, which takes steps
# Each fits many networks; together they are most of the time.
LONG = {
    *LEARNED,
    "check_classifiers_classes",
    "check_estimators_dtypes",
    "check_estimators_overwrite_params",
    "check_fit_score_takes_y",
}


def contract(parameters, without=()):
    found = [pair for kind in KINDS for pair in estimator_checks_generator(kind(**parameters))]
    named = [(estimator, check, check.func.__name__) for estimator, check in found]
    return [pytest.param(e, c, id=f"{type(e).__name__}-{name}") for e, c, name in named if name not in without]


@pytest.mark.parametrize("estimator, check", contract(QUICK, without=LONG))
def test_contract(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("estimator, check", contract({"hidden_layer_sizes": 32, "epochs": 30, "lam": 3e-3}))
def test_the_whole_contract(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("estimator, check", contract({"hidden_layer_sizes": 16, "epochs": 2}, without=LEARNED))
def test_contract_with_the_search(estimator, check):
    check(estimator)


def blobs(rows=200, kinds=3):
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(rows) % kinds)
    x = random.normal(size=(rows, 6))
    x[:, :kinds] += 2.5 * np.eye(kinds)[labels]
    return x, np.array(["a", "b", "c", "d"])[labels]


@pytest.mark.parametrize("kinds", [2, 3])
def test_a_classifier_shrinks_and_is_right(kinds):
    x, y = blobs(kinds=kinds)
    fitted = sn.sklearn.ShrinkClassifier((64, 32), epochs=60, lam=1e-2, random_state=0).fit(x[::2], y[::2])
    assert fitted.score(x[1::2], y[1::2]) > 0.9
    first, second = fitted.sizes_
    assert 0 < first < 48 and 0 < second < 24
    outputs = 1 if kinds == 2 else kinds
    assert fitted.n_parameters_ == 7 * first + (first + 1) * second + (second + 1) * outputs
    np.testing.assert_allclose(fitted.predict_proba(x).sum(1), 1, rtol=1e-12)


def test_several_targets_of_different_scale():
    x, y = make_regression(300, 8, n_informative=4, n_targets=3, noise=1.0, random_state=0)
    y = y * [1, 1e4, 1e-4] + [0, 1e6, 5]
    fitted = sn.sklearn.ShrinkRegressor(64, epochs=80, lam=1e-3, lr=1e-2, random_state=0).fit(x[::2], y[::2])
    assert fitted.predict(x).shape == (300, 3) and fitted.score(x[1::2], y[1::2]) > 0.9
    one = clone(fitted).fit(x, y[:, 0])
    assert one.predict(x).shape == (300,)


def test_the_same_seed_gives_the_same_network_and_leaves_torchs_generator_alone():
    x, y = blobs()
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    found = [sn.sklearn.ShrinkClassifier(**QUICK, random_state=seed).fit(x, y).predict_proba(x) for seed in (3, 3, 4)]
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


def test_the_search_trains_on_all_rows_with_the_lambda_found():
    x, y = blobs()
    fitted = sn.sklearn.ShrinkClassifier(16, epochs=5, random_state=0).fit(x, y)
    assert [tried["lam"] for tried in fitted.search_] == list(search.LAMS) and fitted.lam_ in search.LAMS
    assert len(fitted.loss_curve_) == 5 * 13  # 200 rows in batches of 16
    assert sn.sklearn.ShrinkClassifier(16, epochs=5, random_state=0, lam=fitted.lam_).fit(x, y).search_ == []


def test_the_search_takes_the_least_loss():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 6))
    for y in (random.normal(size=200), x @ random.normal(size=6)):
        fitted = sn.sklearn.ShrinkRegressor(16, epochs=10, random_state=0).fit(x, y)
        assert fitted.lam_ == min(fitted.search_, key=lambda tried: tried["loss"])["lam"]
        features = [tried["features"] for tried in fitted.search_]
        assert features == sorted(features)  # lambdas fall


def test_early_stopping_goes_back_to_the_best_epoch():
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(60, 5)).astype(np.float32))
    y = torch.from_numpy(random.normal(size=(60, 1)).astype(np.float32))  # nothing to learn: it gets worse soon
    recipe = Recipe((32,), 1e-2, 1e-2, 0.0, 200, 10, patience=3)
    data, held = (x[:40], y[:40]), (x[40:], y[40:])
    trained = Run(data, objectives.numbers(1), recipe, 1e-2, 0, held).train()
    values = [row["test_loss"] for row in trained.account.of_kind("epoch")]
    assert len(values) == trained.epochs + 3 < 200
    assert values[trained.epochs - 1] == min(values) == pytest.approx(float(trained.validation.mean()), rel=1e-5)
    out = trained.network(held[0])
    assert float((out - held[1]).square().mean()) == pytest.approx(min(values), rel=1e-5)


def test_early_stopping_of_an_estimator():
    x, y = blobs()
    fitted = sn.sklearn.ShrinkClassifier(16, early_stopping=True, patience=2, epochs=50, random_state=0).fit(x, y)
    assert fitted.n_iter_ <= 50 and len(fitted.search_) == 3


def test_a_pickle_predicts_the_same():
    x, y = blobs()
    fitted = sn.sklearn.ShrinkClassifier(**QUICK, random_state=0).fit(x, y)
    assert (pickle.loads(pickle.dumps(fitted)).predict_proba(x) == fitted.predict_proba(x)).all()


@pytest.mark.parametrize(
    "name, value",
    [
        ("hidden_layer_sizes", ()),
        ("hidden_layer_sizes", (8, 0)),
        ("hidden_layer_sizes", 2.5),
        ("lam", -1.0),
        ("lam", "much"),
        ("lam", float("nan")),
        ("lr", 0),
        ("filter_lr", float("inf")),
        ("weight_decay", -1),
        ("epochs", 0),
        ("batch_size", 0),
        ("batch_size", "large"),
        ("patience", True),
        ("validation_fraction", 1.0),
    ],
)
def test_bad_parameter(name, value):
    x, y = blobs(rows=40)
    with pytest.raises(sn.ShrinkError, match=name) as found:
        sn.sklearn.ShrinkClassifier(**{**QUICK, name: value}).fit(x, y)
    assert repr(value) in str(found.value) or f"{value:g}" in str(found.value)


def test_one_class():
    with pytest.raises(sn.ShrinkError, match="one class, 'a', in 20 rows"):
        sn.sklearn.ShrinkClassifier(**QUICK).fit(blobs(20)[0], ["a"] * 20)


def test_what_float32_cannot_hold():
    x, y = blobs(40)
    with pytest.raises(sn.ShrinkError, match=r"X has values up to 1e\+200"):
        sn.sklearn.ShrinkClassifier(**QUICK).fit(np.where(np.arange(6) == 2, 1e200, x), y)


def test_scikit_learn_is_imported_when_it_is_asked_for():
    code = (
        "import sys, shrinknets_fast as sn; assert 'sklearn' not in sys.modules\n"
        "sys.modules['sklearn'] = None\n"
        "try: sn.sklearn\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "shrinknets_fast.sklearn needs scikit-learn: pip install 'shrinknets_fast[sklearn]'\n"
