"""Fusion adapters: how an expert's identity feature enters a vision-language model's image tokens."""
