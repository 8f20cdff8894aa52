"""Builds what is installed: the wheel, and a Debian package for each wing. `python config/release/build.py wheel|deb`.

Both packages fill one virtual environment, /usr/lib/certfan: certfan-agent brings it with all that the agent needs,
certfan-daemon adds what only the daemon needs. So both wings on one machine are always of one release.
"""

from __future__ import annotations

import filecmp
import gzip
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import reference  # beside this file

PROJECT = Path(__file__).parents[2]
HERE = Path(__file__).parent
DIST = PROJECT / "build" / "dist"
LIBRARY = "usr/lib/certfan"
LAUNCHER = f"""#!/{LIBRARY}/bin/python -I
import sys
from certfan.cli import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Package:
    """One Debian package: which units it brings and starts, and what it says of itself."""

    name: str
    units: tuple[str, ...]
    started: tuple[str, ...]
    depends: str
    summary: str
    manuals: tuple[str, ...]


AGENT = Package(
    "certfan-agent",
    ("certfan-agent-boot.service", "certfan-agent.service", "certfan-apply.service", "certfan-apply.socket"),
    ("certfan-agent-boot.service", "certfan-apply.socket", "certfan-agent.service"),
    "{python}, systemd (>= 252), init-system-helpers",
    "installs certificates from a certfan daemon and proves that they are served",
    ("certfan.1", "agent.toml.5"),
)
DAEMON = Package(
    "certfan-daemon",
    ("certfan.service", "certfan-http01.socket"),
    ("certfan.service",),
    "certfan-agent (= {version}), {python}",
    "gets every certificate of a fleet and hands each machine its own",
    ("certfan.toml.5", "certfan-daemon.8"),
)


def version() -> str:
    """The release that is built."""
    return str(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"])


def build_wheel(into: Path = DIST) -> Path:
    """Build the wheel and return its path; nothing is left in the sources."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(PROJECT / name, copy)
        shutil.copytree(PROJECT / "certfan", copy / "certfan", ignore=shutil.ignore_patterns("__pycache__"))
        _pip("wheel", "--no-deps", "--wheel-dir", str(into), str(copy))
    return into / f"certfan-{version()}-py3-none-any.whl"


def build_debs(into: Path = DIST) -> tuple[Path, Path]:
    """Build both packages, the agent's first, and return their paths."""
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        roots = {package: Path(place) / package.name for package in (AGENT, DAEMON)}
        wheel = build_wheel(Path(place))
        agent, daemon = (roots[package] / _packages() for package in (AGENT, DAEMON))
        _install(f"{wheel}", agent)
        _install(f"{wheel}[daemon]", daemon)
        _leave_out(daemon, agent)
        _make_environment(roots[AGENT])
        return _finish(AGENT, roots[AGENT], into), _finish(DAEMON, roots[DAEMON], into)


def _packages() -> str:
    return f"{LIBRARY}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def _pip(*words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words], check=True
    )


def _install(what: str, place: Path) -> None:
    pins = HERE / "constraints.txt"
    # Only wheels: nothing is built, so nothing of this machine's compilers or of a package's own set-up gets in.
    _pip(
        "install",
        "--no-compile",
        "--only-binary",
        ":all:",
        "--constraint",
        str(pins),
        "--target",
        str(place),
        what,
    )
    shutil.rmtree(place / "bin", ignore_errors=True)


def _leave_out(place: Path, there: Path) -> None:
    """Remove what the other package brings; it must be the same."""
    for path in sorted(there.rglob("*")):
        twin = place / path.relative_to(there)
        if not path.is_file():
            continue
        if path.name not in {"RECORD", "direct_url.json"} and not filecmp.cmp(path, twin, shallow=False):
            raise SystemExit(f"{twin} differs between the packages")
        twin.unlink()
    for folder in sorted((path for path in place.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _make_environment(root: Path) -> None:
    """Lay what makes a folder a virtual environment (PEP 405), and the command."""
    library = root / LIBRARY
    (library / "bin").mkdir()
    (library / "bin/python").symlink_to("/usr/bin/python3")
    (library / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    command = root / "usr/bin/certfan"
    command.parent.mkdir()
    command.write_text(LAUNCHER)
    command.chmod(0o755)
    for kind in ("sysusers", "tmpfiles"):
        place = root / f"usr/lib/{kind}.d"
        place.mkdir()
        shutil.copy(PROJECT / f"systemd/certfan.{kind}.conf", place / "certfan.conf")


def _finish(package: Package, root: Path, into: Path) -> Path:
    # Never compared with its source: the package manager owns both, and a root that is read-only is no surprise.
    words = ["-m", "compileall", "-q", "-s", str(root), "-p", "/", "--invalidation-mode", "unchecked-hash"]
    subprocess.run(["/usr/bin/python3", *words, str(root / _packages())], check=True)
    units = root / "lib/systemd/system"
    units.mkdir(parents=True)
    for unit in package.units:
        shutil.copy(PROJECT / "systemd" / unit, units)
    _document(package, root)
    _control(package, root)
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", str(root)], check=True)
    name = f"{package.name}_{version()}_{_architecture()}.deb"
    argv = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(root), str(into / name)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return into / name


def _document(package: Package, root: Path) -> None:
    place = root / "usr/share/doc" / package.name
    place.mkdir(parents=True)
    reference.write_manuals(root / "usr/share/man", package.manuals)
    (place / "changelog.gz").write_bytes(gzip.compress((PROJECT / "CHANGELOG.md").read_bytes(), mtime=0))
    examples = place / "examples"
    examples.mkdir()
    if package is AGENT:
        shutil.copy(PROJECT / "config/agent.toml", examples)
    else:
        shutil.copy(PROJECT / "config/certfan.toml", examples)
        for folder in ("conf.d", "prometheus", "grafana"):
            shutil.copytree(PROJECT / "config" / folder, examples / folder)


def _control(package: Package, root: Path) -> None:
    place = root / "DEBIAN"
    place.mkdir()
    minor = sys.version_info.minor
    python = (
        f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})"  # the wheels' binary parts are for this one
    )
    size = (
        sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        // 1024
    )
    fields = {
        "Package": package.name,
        "Version": version(),
        "Architecture": _architecture(),
        "Maintainer": "certfan <root@localhost>",
        "Installed-Size": str(size),
        "Depends": package.depends.format(version=version(), python=python),
        "Section": "admin",
        "Priority": "optional",
        "Description": package.summary,
    }
    (place / "control").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    for script in ("postinst", "prerm", "postrm"):
        text = (HERE / "debian" / script).read_text()
        own = (HERE / "debian" / f"{package.name}.purge").read_text()
        for mark, value in (
            ("UNITS", package.units),
            ("STARTED", package.started),
            ("PURGE", (own.rstrip(),)),
        ):
            text = text.replace(f"@{mark}@", " ".join(value))
        (place / script).write_text(text)
        (place / script).chmod(0o755)


def _architecture() -> str:
    argv = ["dpkg", "--print-architecture"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    built = [build_wheel()] if sys.argv[1:] == ["wheel"] else build_debs()
    print("\n".join(str(path.relative_to(PROJECT)) for path in built))
