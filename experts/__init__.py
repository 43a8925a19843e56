"""Identity experts: trainers, heads and losses for person, face, pet and object."""
