"""How an encoder is tested: protocols, thresholds, pictures, embeddings written to disk."""
