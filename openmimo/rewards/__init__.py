"""Rewards: rule-based accuracy only (MiMo report, section 3.3). Mathematics and code."""
