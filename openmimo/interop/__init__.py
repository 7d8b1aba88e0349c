"""Models of other projects in, and ours out to other programs."""
