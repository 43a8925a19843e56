"""Vision-language models: their families, batches, prompts, and experts put into them."""
