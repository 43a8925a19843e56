"""Household objects: the shapes that they are assembled from, and their finish."""
