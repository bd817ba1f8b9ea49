"""Registration networks: one file a paper."""
