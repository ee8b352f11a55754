"""What users of modAL have before starlearn: a transformer as a classifier of texts."""

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class TransformerClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A pre-trained model with a new head, all of it fine-tuned in every fit."""

    def __init__(self, model: str, steps: int = 10, learning_rate: float = 3e-3) -> None:
        self.model = model
        self.steps = steps
        self.learning_rate = learning_rate

    def fit(self, X: Any, y: Any) -> Self:
        torch.manual_seed(0)
        self.classes_, codes = np.unique(list(y), return_inverse=True)
        self.tokenizer_ = AutoTokenizer.from_pretrained(self.model)
        self.network_ = AutoModelForSequenceClassification.from_pretrained(
            self.model, num_labels=len(self.classes_)
        )
        optimizer = torch.optim.AdamW(self.network_.parameters(), lr=self.learning_rate)
        self.network_.train()
        for _ in range(self.steps):
            loss = torch.nn.functional.cross_entropy(self._logits(X), torch.tensor(codes))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        self.network_.eval()
        return self

    def predict_proba(self, X: Any) -> Any:
        check_is_fitted(self)
        with torch.no_grad():
            return self._logits(X).softmax(dim=1).numpy()

    def predict(self, X: Any) -> Any:
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _logits(self, X: Any) -> Any:
        tokens = self.tokenizer_(list(X), return_tensors="pt", padding=True)
        return self.network_(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).logits
