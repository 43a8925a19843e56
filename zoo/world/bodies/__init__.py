"""Animals, persons and heads: the solids that they are made of, and what is painted on them."""
