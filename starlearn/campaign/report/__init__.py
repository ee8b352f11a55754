"""The report of a campaign: one HTML file with figures, which needs no network."""
