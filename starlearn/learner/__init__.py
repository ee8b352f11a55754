"""The estimator and the session that runs its base model."""
