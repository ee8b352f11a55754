"""The web page on which several annotators label the batch of a campaign."""
