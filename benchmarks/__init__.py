"""What the design promises in numbers, measured: both sides of a ratio in one run, on one machine, by turns."""
