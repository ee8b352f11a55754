"""scikit-learn's checks of an estimator, one by one: its own where they need no numeric X, in text
where they do, and the reason where one has no meaning for texts."""

import inspect
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from starlearn.errors import InputError
from starlearn.learner.estimator import STARLearner
from starlearn.settings import LoRA, Training
from starlearn.tasks import ChoiceTask, GenerationTask

OWN = [
    "check_complex_data",
    "check_classifiers_regression_target",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_sparse_matrix",
    "check_estimator_sparse_tag",
    "check_estimator_tags_renamed",
    "check_estimators_unfitted",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_requires_y_none",
    "check_set_params",
    "check_supervised_y_no_nan",
    "check_valid_tag_types",
]
"""Run as scikit-learn has them."""

IN_TEXT = {
    "check_classifier_data_not_an_array": "test_array_likes_and_containers",
    "check_classifiers_classes": "test_classes_are_sorted_and_keep_their_type",
    "check_classifiers_one_label": "test_one_label_alone_is_always_the_answer",
    "check_classifiers_train": "test_it_learns_what_it_is_shown",
    "check_dict_unchanged": "test_answering_changes_no_attribute",
    "check_dont_overwrite_parameters": "test_fit_adds_no_public_attribute_but_modals",
    "check_dtype_object": "test_what_is_no_text_is_named",
    # Of a 1-D sparse array scikit-learn itself cannot make the forms that it would try.
    "check_estimator_sparse_array": "test_sparse_rows_are_refused_by_name",
    "check_estimators_dtypes": "test_array_likes_and_containers",
    "check_estimators_empty_data_messages": "test_empty_input",
    "check_estimators_fit_returns_self": "test_fit_returns_self",
    "check_estimators_nan_inf": "test_missing_values_are_named_in_every_method",
    "check_estimators_overwrite_params": "test_fit_changes_no_parameter",
    "check_estimators_pickle": "test_a_pickle_answers_the_same",
    "check_f_contiguous_array_estimator": "test_views_with_strides",
    "check_fit1d": "test_items_have_one_dimension",
    "check_fit2d_1feature": "test_one_column_of_texts",
    "check_fit2d_1sample": "test_one_item_alone",
    "check_fit2d_predict1d": "test_one_text_is_no_collection",
    "check_fit_check_is_fitted": "test_fitted_is_what_has_been_fitted",
    "check_fit_idempotent": "test_fitting_twice_is_fitting_once",
    "check_fit_score_takes_y": "test_y_is_the_second_argument",
    "check_methods_sample_order_invariance": "test_the_order_of_items_does_not_matter",
    "check_methods_subset_invariance": "test_items_alone_get_the_same_answer",
    "check_n_features_in": "test_texts_have_no_number_of_features",
    "check_n_features_in_after_fitting": "test_texts_have_no_number_of_features",
    "check_param_validation": "test_a_bad_parameter_is_named",
    "check_pipeline_consistency": "test_a_pipeline_changes_nothing",
    "check_readonly_memmap_input": "test_read_only_memory_map",
    "check_supervised_y_2d": "test_labels_as_a_column",
    "check_transformer_data_not_an_array": "test_array_likes_and_containers",
    "check_transformer_general": "test_fit_transform_is_fit_and_transform",
    "check_transformers_unfitted": "test_points_need_no_fit",
}
"""Check, and the test below that does the same with texts."""

_NO_WEIGHTS = "fit takes no sample_weight: test_weights_are_for_score_alone"
_NO_ARRAY_API = "texts are no numbers on a device"
_ABSENT = "there is no such method, attribute or parameter, so the check does nothing"
WITHOUT_MEANING = {
    "check_all_zero_sample_weights_error": _NO_WEIGHTS,
    "check_classifiers_one_label_sample_weights": _NO_WEIGHTS,
    "check_sample_weight_equivalence_on_dense_data": _NO_WEIGHTS,
    "check_sample_weight_equivalence_on_sparse_data": _NO_WEIGHTS,
    "check_sample_weights_list": _NO_WEIGHTS,
    "check_sample_weights_not_an_array": _NO_WEIGHTS,
    "check_sample_weights_not_overwritten": _NO_WEIGHTS,
    "check_sample_weights_pandas_series": _NO_WEIGHTS,
    "check_sample_weights_shape": _NO_WEIGHTS,
    "check_array_api_input": _NO_ARRAY_API,
    "check_array_api_mixed_inputs": _NO_ARRAY_API,
    "check_array_api_same_namespace": _NO_ARRAY_API,
    "check_class_weight_balanced_linear_classifier": _ABSENT,
    "check_class_weight_classifiers": _ABSENT,
    "check_decision_proba_consistency": _ABSENT,
    "check_estimators_partial_fit_n_features": _ABSENT,
    "check_non_transformer_estimators_n_iter": _ABSENT,
    "check_sparsify_coefficients": _ABSENT,
    "check_transformer_n_iter": _ABSENT,
    "check_positive_only_tag_during_fit": "texts have no sign",
    "check_transformer_preserve_dtypes": "texts become numbers: the tag preserves_dtype is empty",
}

TEXTS = [
    "the sky is",
    "grass is",
    "the rose is very",
    "a big sea is",
    "the small leaf is",
    "what colour is the sun",
]
LABELS = ["blue", "green", "red", "blue", "green", "red"]
NEW = ["night sky is", "a leaf is", "the moon is big", "sand is"]
ANSWERING = ("predict", "predict_proba", "transform")


@pytest.fixture(scope="module")
def learner(tiny_model: str) -> STARLearner:
    """A fitted learner that no test may change; clones of it share its base model."""
    return STARLearner(
        tiny_model,
        task=ChoiceTask("{text} Answer :"),
        adapter=LoRA(r=2, alpha=4, dropout=0.1),
        training=Training(max_steps=2, batch_size=3, learning_rate=5e-3),
        random_state=3,
        verbose=False,
    ).fit(TEXTS, LABELS)


def answers(learner: STARLearner, X: Any = NEW) -> list[Any]:
    return [getattr(learner, method)(X) for method in ANSWERING]


def same(first: list[Any], second: list[Any]) -> bool:
    return all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))


# The table is complete


class Claimant(STARLearner):
    """Says that it takes numbers, so that scikit-learn tells all that it would check."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def asked() -> set[str]:
    """Return the names of scikit-learn's checks of a classifier that is a transformer too."""
    names = {"check_param_validation"}  # of its own estimators
    for estimator in (Claimant(random_state=0), LogisticRegression()):
        for _, check in estimator_checks.estimator_checks_generator(estimator, mark=None):
            while hasattr(check, "func"):
                check = check.func
            names.add(check.__name__)
    return names


def test_every_check_of_scikit_learn_has_its_place() -> None:
    table = [*OWN, *IN_TEXT, *WITHOUT_MEANING]
    assert len(table) == len(set(table))
    assert sorted(asked() - set(table)) == []
    assert all(callable(globals()[name]) for name in IN_TEXT.values())
    assert len(asked()) > 60


@pytest.mark.parametrize("name", OWN)
def test_check_of_scikit_learn(learner: STARLearner, name: str) -> None:
    check = getattr(estimator_checks, name, None)
    if check is None:
        pytest.skip(f"scikit-learn of this version has no {name}")
    check("STARLearner", clone(learner))


def test_what_is_absent_is_absent(learner: STARLearner) -> None:
    for name in ("decision_function", "partial_fit", "sparsify", "n_iter_"):
        assert not hasattr(learner, name)
    assert not {"class_weight", "max_iter"} & set(learner.get_params())
    assert get_tags(learner).transformer_tags.preserves_dtype == []


def test_tags_are_honest(learner: STARLearner) -> None:
    tags = get_tags(learner)
    assert (tags.input_tags.string, tags.input_tags.one_d_array) == (True, True)
    assert not tags.input_tags.two_d_array
    assert not tags.input_tags.sparse
    assert tags.target_tags.required
    assert is_classifier(learner)
    assert not is_classifier(clone(learner).set_params(task=GenerationTask()))
    assert not tags.non_deterministic
    assert get_tags(clone(learner).set_params(random_state=None)).non_deterministic


# Fitting


def test_fit_returns_self(learner: STARLearner) -> None:
    one = clone(learner)
    assert one.fit(TEXTS, LABELS) is one
    assert one.teach(NEW[:1], ["blue"]) is one


def test_y_is_the_second_argument(learner: STARLearner) -> None:
    for name in ("fit", "fit_transform", "score", "teach"):
        assert list(inspect.signature(getattr(learner, name)).parameters)[:2] == ["X", "y"]
    with pytest.raises(TypeError, match="y"):
        clone(learner).fit(TEXTS)  # type: ignore[call-arg]


def test_fit_changes_no_parameter(learner: STARLearner) -> None:
    one = clone(learner)
    before = {name: (id(value), repr(value)) for name, value in one.get_params().items()}
    one.fit(TEXTS, LABELS)
    after = {name: (id(value), repr(value)) for name, value in one.get_params().items()}
    assert after == before


def test_fit_adds_no_public_attribute_but_modals(learner: STARLearner) -> None:
    added = set(vars(learner)) - set(vars(clone(learner)))
    public = {name for name in added if not name.startswith("_") and not name.endswith("_")}
    assert public == {"X_training", "y_training"}  # modAL's names


def test_fitting_twice_is_fitting_once(learner: STARLearner) -> None:
    one = clone(learner).fit(NEW, ["red", "red", "blue", "green"])
    one.teach(TEXTS, LABELS)
    one.fit(TEXTS, LABELS)
    assert same(answers(one), answers(learner))
    assert one.fit(TEXTS, LABELS).X_training.tolist() == TEXTS
    assert same(answers(one), answers(learner))
    assert [r["round"] for r in one.rounds_] == [0]


def test_refitting_forgets_the_classes_of_before(learner: STARLearner) -> None:
    one = clone(learner).fit(NEW, ["yes", "no", "yes", "no"])
    assert one.classes_.tolist() == ["no", "yes"]
    one.fit(TEXTS, LABELS)
    assert one.classes_.tolist() == ["blue", "green", "red"]
    assert one.predict_proba(NEW).shape == (4, 3)


def test_a_clone_of_a_fitted_learner_is_not_fitted(learner: STARLearner) -> None:
    one = clone(learner)
    assert str(one.get_params()) == str(learner.get_params())
    for name in ("adapter_", "classes_", "rounds_", "X_training", "seed_"):
        assert not hasattr(one, name)
    with pytest.raises(NotFittedError):
        one.predict(NEW)


def test_fitted_is_what_has_been_fitted(learner: STARLearner) -> None:
    one = clone(learner)
    with pytest.raises(NotFittedError):
        check_is_fitted(one)
    one.transform(NEW)
    with pytest.raises(NotFittedError):
        check_is_fitted(one)
    check_is_fitted(one.fit(TEXTS, LABELS))


def test_same_random_state_same_learner(learner: STARLearner) -> None:
    assert same(answers(clone(learner).fit(TEXTS, LABELS)), answers(learner))
    other = clone(learner).set_params(random_state=4).fit(TEXTS, LABELS)
    assert not np.array_equal(other.predict_proba(NEW), learner.predict_proba(NEW))
    drawn = clone(learner).set_params(random_state=np.random.RandomState(0))
    first = drawn.fit(TEXTS, LABELS).predict_proba(NEW)
    assert not np.array_equal(drawn.fit(TEXTS, LABELS).predict_proba(NEW), first)


def test_parameters_set_after_fit_wait_for_the_next_fit(learner: STARLearner) -> None:
    one = clone(learner).fit(TEXTS, LABELS)
    one.set_params(training__max_steps=5, adapter__r=3)
    assert same(answers(one), answers(learner))
    one.fit(TEXTS, LABELS)
    assert (one.rounds_[0]["steps"], one.adapter_.r) == (5, 3)


def test_it_learns_what_it_is_shown(learner: STARLearner) -> None:
    one = clone(learner).set_params(training__max_steps=60, training__learning_rate=1e-2)
    with pytest.raises(InputError, match="6 items and 5 labels"):
        one.fit(TEXTS, LABELS[:-1])
    one.fit(TEXTS, LABELS)
    assert one.predict(TEXTS).tolist() == LABELS
    probabilities = one.predict_proba(TEXTS)
    assert probabilities.shape == (6, 3)
    assert (probabilities.max(axis=1) > 0.8).all()


# Labels


def test_probabilities_are_of_the_classes_and_sum_to_one(learner: STARLearner) -> None:
    probabilities = learner.predict_proba(NEW)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    best = learner.classes_[probabilities.argmax(axis=1)]
    assert learner.predict(NEW).tolist() == best.tolist()
    assert learner.score(NEW, best) == 1.0


@pytest.mark.parametrize(
    "classes", [["red", "blue", "green"], [4, 1], [True, False], np.array([4, 1], dtype=np.int8)]
)
def test_classes_are_sorted_and_keep_their_type(learner: STARLearner, classes: Any) -> None:
    labels = [classes[i % len(classes)] for i in range(6)]
    one = clone(learner).fit(TEXTS, np.array(labels))
    assert one.classes_.tolist() == sorted(classes)
    assert set(one.predict(NEW).tolist()) <= set(classes)
    assert one.predict(NEW).dtype.kind == one.classes_.dtype.kind
    assert 0 <= one.score(TEXTS, labels) <= 1


def test_one_label_alone_is_always_the_answer(learner: STARLearner) -> None:
    with pytest.warns(UserWarning, match="Name all classes"):
        one = clone(learner).fit(TEXTS, ["red"] * 6)
    assert one.predict(NEW).tolist() == ["red"] * 4
    np.testing.assert_allclose(one.predict_proba(NEW), np.ones((4, 1)))


def test_labels_as_a_column(learner: STARLearner) -> None:
    # scikit-learn warns here; a frame of one column is how many users keep labels.
    for column in (np.array(LABELS)[:, np.newaxis], pd.DataFrame({"label": LABELS})):
        assert same(answers(clone(learner).fit(TEXTS, column)), answers(learner))
    with pytest.raises(InputError, match="row 0"):
        clone(learner).fit(TEXTS, np.array([LABELS, LABELS]).T)


@pytest.mark.parametrize("bad", [None, np.nan, "", 1.5, b"red", ["red"]])
def test_a_label_that_is_none_is_named(learner: STARLearner, bad: Any) -> None:
    for method in (learner.score, clone(learner).fit, clone(learner).teach):
        with pytest.raises(InputError, match=r"(?s)1 of 6 labels.*row 5"):
            method(TEXTS, [*LABELS[:5], bad])


def test_weights_are_for_score_alone(learner: STARLearner) -> None:
    assert not has_fit_parameter(learner, "sample_weight")
    with pytest.raises(TypeError, match="sample_weight"):
        clone(learner).fit(TEXTS, LABELS, sample_weight=[1] * 6)  # type: ignore[call-arg]
    right = learner.predict(NEW).tolist()
    wrong = next(label for label in learner.classes_ if label != right[0])
    assert learner.score(NEW, [wrong, *right[1:]], sample_weight=[1, 1, 1, 1]) == 0.75
    assert learner.score(NEW, [wrong, *right[1:]], sample_weight=[0, 1, 1, 1]) == 1.0


# Items


class ArrayLike:
    """Nothing but an array to be had from it."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self.values, dtype=dtype)


def column(texts: list[Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"text": texts})["text"]


CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "array-like": ArrayLike,
    "tuple": tuple,
    "iterator": iter,
    "text array": np.array,
    "object array": lambda texts: np.array(texts, dtype=object),
    "numpy texts": lambda texts: [np.str_(text) for text in texts],
    "series": lambda texts: pd.Series(texts, index=range(len(texts), 0, -1)),
    "string series": lambda texts: pd.Series(texts, dtype="string"),
    "categories": lambda texts: pd.Series(texts, dtype="category"),
    "index": pd.Index,
    "dataset column": column,
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_array_likes_and_containers(learner: STARLearner, kind: str) -> None:
    wrap = CONTAINERS[kind]
    one = clone(learner).fit(wrap(TEXTS), wrap(LABELS))
    assert one.X_training.tolist() == TEXTS
    assert one.y_training.tolist() == LABELS
    expected = answers(learner)
    found = [getattr(one, method)(wrap(NEW)) for method in ANSWERING]
    assert same(found, expected)


def test_read_only_memory_map(learner: STARLearner, tmp_path: Path) -> None:
    for name, values in (("X", TEXTS), ("y", LABELS), ("new", NEW)):
        np.save(tmp_path / name, np.array(values))
    X, y, new = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("X", "y", "new"))
    assert isinstance(X, np.memmap)
    assert not X.flags.writeable
    assert same(answers(clone(learner).fit(X, y), new), answers(learner))


def test_views_with_strides(learner: STARLearner) -> None:
    mixed = np.array([[text, "x"] for text in NEW], dtype=object, order="F")
    assert same(answers(learner, mixed[:, 0]), answers(learner))
    assert same(answers(learner, mixed[::-1][::-1, 0]), answers(learner))


def test_items_have_one_dimension(learner: STARLearner) -> None:
    with pytest.raises(InputError, match="one-dimensional"):
        clone(learner).fit(np.array([TEXTS, TEXTS]).T, LABELS)
    with pytest.raises(InputError, match=r"row 0: .*float"):
        clone(learner).fit(np.zeros(6), LABELS)


def test_one_column_of_texts(learner: STARLearner) -> None:
    one = clone(learner).fit(np.array(TEXTS)[:, np.newaxis], LABELS)
    assert same(answers(one, np.array(NEW)[:, np.newaxis]), answers(learner))


def test_one_item_alone(learner: STARLearner) -> None:
    with pytest.warns(UserWarning, match="Name all classes"):
        one = clone(learner).fit(TEXTS[:1], LABELS[:1])
    assert one.predict(NEW[:1]).tolist() == LABELS[:1]
    assert learner.predict(NEW[:1]).shape == (1,)


@pytest.mark.parametrize("one", ["the sky is", b"the sky is", {"text": "the sky is"}, 3, None])
def test_one_text_is_no_collection(learner: STARLearner, one: Any) -> None:
    for method in ANSWERING:
        with pytest.raises(InputError, match="must be a"):
            getattr(learner, method)(one)


@pytest.mark.parametrize(
    "empty", [[], (), np.array([]), np.empty((0, 1)), pd.Series([], dtype=str)]
)
def test_empty_input(learner: STARLearner, empty: Any) -> None:
    for method in ANSWERING:
        with pytest.raises(InputError, match="X is empty"):
            getattr(learner, method)(empty)
    with pytest.raises(InputError, match="X is empty"):
        clone(learner).fit(empty, [])
    with pytest.raises(InputError, match=r"shape \(6, 0\)"):
        clone(learner).fit(np.empty((6, 0)), LABELS)


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, pd.NA, "", " \t"])
def test_missing_values_are_named_in_every_method(learner: STARLearner, bad: Any) -> None:
    for method in (*ANSWERING, "query", "uncertainty"):
        with pytest.raises(InputError, match=r"(?s)1 of 2 items.*row 1"):
            getattr(learner, method)(["the sky", bad])
    with pytest.raises(InputError, match=r"(?s)1 of 6 items.*row 5"):
        clone(learner).fit([*TEXTS[:5], bad], LABELS)


@pytest.mark.parametrize("bad", [b"sky", ["sky"], ("sky",), {"no": "field"}, object(), 1j, 3.5])
def test_what_is_no_text_is_named(learner: STARLearner, bad: Any) -> None:
    X = np.empty(2, dtype=object)
    X[0], X[1] = "the sky", bad
    for method in ANSWERING:
        with pytest.raises(InputError, match="row 1"):
            getattr(learner, method)(X)


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csr_array, sp.dok_array, sp.coo_array])
def test_sparse_rows_are_refused_by_name(learner: STARLearner, form: Any) -> None:
    for method in ANSWERING:
        with pytest.raises(InputError, match="sparse"):
            getattr(learner, method)(form(np.eye(3)))


def test_texts_have_no_number_of_features(learner: STARLearner) -> None:
    assert not hasattr(learner, "n_features_in_")
    assert not hasattr(learner, "feature_names_in_")
    pipeline = make_pipeline(learner)
    assert not hasattr(pipeline, "n_features_in_")


# Answering


def test_answering_changes_no_attribute(learner: STARLearner) -> None:
    before, contents = dict(vars(learner)), {k: repr(v) for k, v in vars(learner).items()}
    answers(learner)
    learner.score(TEXTS, LABELS)
    learner.uncertainty(NEW)
    assert vars(learner) == before
    assert {k: repr(v) for k, v in vars(learner).items()} == contents


def test_the_order_of_items_does_not_matter(learner: STARLearner) -> None:
    order = np.random.default_rng(0).permutation(6)
    shuffled = [TEXTS[i] for i in order]
    expected = [found[order] for found in answers(learner, TEXTS)]
    assert same(answers(learner, shuffled), expected)


def test_items_alone_get_the_same_answer(learner: STARLearner) -> None:
    each = [answers(learner, [text]) for text in TEXTS]
    alone = [np.concatenate(found) for found in zip(*each, strict=True)]
    assert same(alone, answers(learner, TEXTS))


def test_fit_transform_is_fit_and_transform(learner: STARLearner) -> None:
    one = clone(learner)
    points = one.fit_transform(TEXTS, LABELS)
    np.testing.assert_array_equal(points, learner.transform(TEXTS))
    assert points.shape == (6, 64)
    assert same(answers(one), answers(learner))


def test_points_need_no_fit(learner: STARLearner) -> None:
    # They are the base model's, which no fit changes; scikit-learn's transformers raise here.
    np.testing.assert_array_equal(clone(learner).transform(NEW), learner.transform(NEW))


def test_a_pipeline_changes_nothing(learner: STARLearner) -> None:
    pipeline = make_pipeline(clone(learner)).fit(TEXTS, LABELS)
    assert same([getattr(pipeline, method)(NEW) for method in ANSWERING], answers(learner))
    assert pipeline.score(TEXTS, LABELS) == learner.score(TEXTS, LABELS)


def test_points_as_a_frame(learner: STARLearner) -> None:
    one = clone(learner).set_output(transform="pandas").fit(TEXTS, LABELS)
    frame = one.transform(NEW)
    assert frame.columns.tolist() == one.get_feature_names_out().tolist()
    assert frame.columns[:2].tolist() == ["starlearner0", "starlearner1"]
    np.testing.assert_array_equal(frame.to_numpy(), learner.transform(NEW))
    assert make_pipeline(clone(learner)).set_output(transform="pandas") is not None


# Afterwards


def test_a_pickle_answers_the_same(learner: STARLearner) -> None:
    again = pickle.loads(pickle.dumps(learner))  # noqa: S301 - our own bytes
    assert same(answers(again), answers(learner))
    assert again.rounds_ == learner.rounds_


def test_a_saved_learner_answers_the_same(learner: STARLearner, tmp_path: Path) -> None:
    learner.save(tmp_path / "saved")
    assert same(answers(STARLearner.load(tmp_path / "saved")), answers(learner))


BAD_TYPES: dict[str, Any] = {
    "model": 3,
    "task": "prompt",
    "quantization": 4,
    "adapter": 8,
    "acquisition": "entropy",
    "training": {"epochs": 3},
    "random_state": "seed",
    "cache_dir": 3,
    "verbose": "yes",
    "callbacks": [3],
    "report_to": 3,
}


def test_every_parameter_has_a_bad_value_here() -> None:
    assert set(BAD_TYPES) == set(STARLearner().get_params(deep=False))


@pytest.mark.parametrize("name", BAD_TYPES)
def test_a_bad_parameter_is_named(learner: STARLearner, name: str) -> None:
    one = clone(learner).set_params(**{name: BAD_TYPES[name]})  # as scikit-learn wants it: no error
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in (one.fit, one.fit_transform, one.teach):
            with pytest.raises(InputError, match=name):
                method(TEXTS, LABELS)


def test_a_bad_setting_of_a_part_is_named(learner: STARLearner) -> None:
    full = STARLearner().set_params(
        task=ChoiceTask(), adapter=LoRA(), training=Training(), acquisition__n_passes=3
    )
    for name in full.get_params():
        part, _, setting = name.partition("__")
        if setting and part != "task":
            one = clone(learner).set_params(**{name: object()})
            with pytest.raises(InputError, match=f"'{setting}' parameter of"):
                one.fit(TEXTS, LABELS)
