"""What is measured rather than asserted; nothing here runs in `make test`."""
