"""Work placed over a Ray cluster: actors that hold workers, and the pool that keeps them alive."""
