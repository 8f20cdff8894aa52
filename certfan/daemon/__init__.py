"""Wing 1: the cert VM. Orders, publishes, announces, and shows what is so."""
