"""The built-in model, its tokenizer, and the generator of its task pools."""
