"""Cameras, light, surroundings and ray tracing: how solids and shapes become pixels."""
