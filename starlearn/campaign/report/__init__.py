"""The report of a campaign: one HTML file that needs no network, and the figures in it."""
