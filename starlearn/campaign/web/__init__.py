"""The page for annotators: the batch of a campaign in the browser, for several people at once."""
