"""RL data curation (MiMo report, section 3.2): raw problem sets in, verifiable problems out."""
