"""HTTP for the services: `mimo serve` and `mimo judge-serve`."""
