"""One file a protocol: dial, STARTTLS, and the leaf and chain that were served."""
