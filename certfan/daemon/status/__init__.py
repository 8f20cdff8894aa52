"""What is so, what should be, why they differ and by when they must agree: the page of the daemon."""
