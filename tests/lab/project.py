"""The project as a VM gets it: its environment under /opt/certfan, its units, users and folders."""

import shutil
import tomllib
from pathlib import Path

from tests.lab import machine
from tests.lab.lab import Lab

OPT = "/opt/certfan"
_ENVIRONMENT = machine.PROJECT / ".venv"
_LAUNCHER = """#!{opt}/bin/python
import sys
from {module} import {function}
sys.exit({function}())
"""


def lay_opt(lab: Lab) -> str:
    """Lay the environment with the package in it, as /opt/certfan will be, and return nspawn's word that binds it.

    An overlay over the project's own environment, so nothing of size is copied; the package itself is copied, so that
    no path leads back to the checkout, and every uid can run it.
    """
    place, layer = lab.rundir / "opt", lab.rundir / "opt.layer"
    upper, work = layer / "upper", layer / "work"
    for folder in (place, layer):
        folder.mkdir()
    machine.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", f"{lab.prefix}opt", str(layer)])
    for folder in (upper, work):
        folder.mkdir()
    layers = f"lowerdir={_ENVIRONMENT},upperdir={upper},workdir={work}"
    machine.run(["mount", "-t", "overlay", f"{lab.prefix}opt", "-o", layers, str(place)])
    _install_package(place)
    _mend_scripts(place / "bin")
    return f"--bind-ro={place}:{OPT}"


def link_command(root: Path) -> None:
    """Make the `certfan` command known in a VM's /usr/bin, and the place where /opt/certfan goes."""
    (root / OPT.lstrip("/")).mkdir(parents=True, exist_ok=True)
    command = root / "usr/bin/certfan"
    command.unlink(missing_ok=True)
    command.symlink_to(f"{OPT}/bin/certfan")


def install_units(root: Path, shipped: Path = machine.PROJECT / "systemd") -> list[str]:
    """Copy the project's units, sysusers and tmpfiles into a VM's root, make the users; the units' names are returned.

    The units are not enabled. The users exist at once; the folders of tmpfiles at boot.
    """
    for kind in ("sysusers", "tmpfiles"):
        for file in sorted(shipped.glob(f"*.{kind}.conf")):
            place = root / "etc" / f"{kind}.d"
            place.mkdir(exist_ok=True)
            shutil.copy(file, place / file.name.replace(f".{kind}.conf", ".conf"))
    units = sorted(file for suffix in ("service", "socket") for file in shipped.glob(f"*.{suffix}"))
    for unit in units:
        shutil.copy(unit, root / "etc/systemd/system" / unit.name)
    machine.run(["systemd-sysusers", f"--root={root}"])
    return [unit.name for unit in units]


def _install_package(place: Path) -> None:
    library = next((place / "lib").glob("python3*")) / "site-packages"
    for trace in library.glob("__editable__*certfan*"):
        trace.unlink()
    for extra in (
        "rich",
        "pygments",
    ):  # tests bring them, structlog takes them where they are, no release has them
        shutil.rmtree(library / extra, ignore_errors=True)
    source = machine.PROJECT / "certfan"
    if source.is_dir():
        shutil.copytree(source, library / "certfan")
        machine.run(["/usr/bin/python3", "-m", "compileall", "-q", str(library / "certfan")], check=False)


def _mend_scripts(folder: Path) -> None:
    before = f"#!{_ENVIRONMENT}/bin/".encode()
    for script in folder.iterdir():
        if script.is_file() and not script.is_symlink() and script.stat().st_size < 10_000:
            content = script.read_bytes()
            if content.startswith(before):
                script.write_bytes(content.replace(before, f"#!{OPT}/bin/".encode(), 1))
    entries = tomllib.loads((machine.PROJECT / "pyproject.toml").read_text())["project"].get("scripts", {})
    for name, target in entries.items():
        module, function = target.split(":")
        (folder / name).write_text(_LAUNCHER.format(opt=OPT, module=module, function=function))
        (folder / name).chmod(0o755)
