"""The farm of the story on one machine: namespaces, booted VMs, GlusterFS, bind9, Pebble, Apache, Postfix, Dovecot.

Synchronous and free of the project's own code: tests and the demo stand on it, it stands on nothing of theirs.
"""
