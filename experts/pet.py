"""The pet expert."""

from experts.expert import Expert


class PetExpert(Expert):
    """Tells particular pets apart: which cat, which dog."""

    category = "pet"
