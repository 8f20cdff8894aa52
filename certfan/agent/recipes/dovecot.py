"""Dovecot. Its reload says 0 on a broken pair and then resets every TLS connection: only a probe tells."""

from certfan.agent.recipes.recipe import Recipe

DOVECOT = Recipe(
    "dovecot",
    unit="dovecot.service",
    test=("doveconf", "-n"),
    reload=("doveadm", "reload"),
    start=("dovecot",),
    active=("pgrep", "-F", "/run/dovecot/master.pid", "dovecot"),
    ports={143: "imap", 993: "tls", 110: "pop3", 995: "tls", 24: "lmtp"},
)
