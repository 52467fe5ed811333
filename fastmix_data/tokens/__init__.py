"""From text to tokens: the tokenizer, and encoding in flat arrays."""
