"""A small text classifier for the tests of starlearn.modal: bag of words, any container."""

from typing import Any, Self

from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted

from starlearn.data.containers import as_items

RED = ["red rose", "red rose sun", "red leaf day", "very red red"]
BLUE = ["blue sky", "blue sea night", "blue sea moon", "small blue blue"]
UNSURE = ["red blue", "rose sky", "nothing known here"]


class BagOfWords(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression on word counts; items are texts, or rows with a field `text`."""

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def fit(self, X: Any, y: Any) -> Self:
        self.n_fits_ = getattr(self, "n_fits_", 0) + 1
        self.seen_ = texts(X)
        self.model_ = make_pipeline(CountVectorizer(), LogisticRegression(C=self.C))
        self.model_.fit(self.seen_, list(y))
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X: Any) -> Any:
        check_is_fitted(self)
        return self.model_.predict(texts(X))

    def predict_proba(self, X: Any) -> Any:
        check_is_fitted(self)
        return self.model_.predict_proba(texts(X))


def texts(X: Any) -> list[str]:
    """Return the texts of items in any container."""
    return [row["text"] if isinstance(row, dict) else str(row) for row in as_items(X)]
