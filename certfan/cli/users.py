"""Users of this machine, as the command line is given them."""

from __future__ import annotations

from certfan.errors import UnknownName


def ids_of(user: str) -> tuple[int, int]:
    """Return uid and gid of a user given by name, or by number (which is its own group).

    Raises:
        UnknownName: there is none.
    """
    import pwd

    if user.isdecimal():
        return int(user), int(user)
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        raise UnknownName(f"there is no user {user}", subject=user, hint="run: systemd-sysusers") from None
    return found.pw_uid, found.pw_gid
