"""In-context galleries: the rule that fills them, the images that look alike, and the manifest that keeps them."""
