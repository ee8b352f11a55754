"""Scoring in several processes: workers of a Ray cluster, or processes of `accelerate launch`."""
