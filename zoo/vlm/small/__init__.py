"""A small vision-language model and how it is trained from scratch."""
