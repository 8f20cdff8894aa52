"""Postfix and Dovecot on cert, which is also the mail server: smtp 25, imap 143 with STARTTLS, imaps 993."""

import shutil
from pathlib import Path

_POSTFIX = """\
compatibility_level = 3.6
myhostname = mail.example.test
mydestination =
inet_interfaces = all
inet_protocols = all
smtpd_tls_chain_files = {live}/privkey.pem, {live}/fullchain.pem
smtpd_tls_security_level = may
smtpd_tls_loglevel = 1
alias_maps =
"""
_DOVECOT = """\
protocols = imap
listen = *, ::
ssl = yes
ssl_cert = <{live}/fullchain.pem
ssl_key = <{live}/privkey.pem
disable_plaintext_auth = yes
mail_location = maildir:/var/mail/%u
passdb {{
  driver = static
  args = password=nobody-logs-in-here
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home=/var/mail
}}
"""


def configure(root: Path, *, certificate: str = "mail.example.test", live: str = "/etc/certfan/live") -> None:
    """Write both configs into a VM's root; Dovecot starts once the pair is in `live`, Postfix offers TLS then."""
    pair = f"{live}/{certificate}"
    (root / "etc/postfix/main.cf").write_text(_POSTFIX.format(live=pair))
    shutil.copy(root / "usr/share/postfix/master.cf.dist", root / "etc/postfix/master.cf")
    (root / "etc/mailname").write_text("mail.example.test\n")
    (root / "etc/dovecot/dovecot.conf").write_text(_DOVECOT.format(live=pair))
