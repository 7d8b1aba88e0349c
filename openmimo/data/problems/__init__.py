"""Generated problems with answers that can be checked: mathematics and code."""
