"""The judge: runs untrusted Python programs against tests, in separate, locked-down processes."""
