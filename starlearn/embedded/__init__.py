"""The built-in model, its tokenizer, and generators of pools for it."""
