"""What every run shares: checkpoints, resuming, timing, pictures, and what follows a fit."""
