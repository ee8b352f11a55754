"""Training of an adapter on the labels bought so far."""
