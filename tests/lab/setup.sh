#!/bin/sh
# Brings what the lab needs: the packages of packages.txt, in build/tools Pebble 2.10 and Caddy 2.11 or newer, and
# certbot in build/certbot. `setup.sh bench` also brings what the benches compare with: packages-bench.txt and lego.
# Safe to repeat; with nothing to do it asks dpkg once and touches no network.
#
# Debian 12's own Pebble is 2.4.0, without ARI and profiles. Newer ones are taken from a newer suite by this machine's
# own apt and mirror and only unpacked: they are static programs, so nothing else of that suite comes along.
# PEBBLE_SUITES overrides the suites that are tried.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tools=$(cd "$here/../.." && pwd)/build/tools
export DEBIAN_FRONTEND=noninteractive

say() { echo "lab setup: $*"; }

missing_packages() { # NAME... -> those that are not installed
    for package; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
    done
}

install_packages() { # NAME...; no service of them is started, the lab starts its own in its VMs
    if [ "$(id -u)" != 0 ]; then
        say "not root, so these packages stay missing: $*"
        return 0
    fi
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f "$log" /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    fi
    say "installing $*"
    apt_install "$@" || { apt-get -qq update && apt_install "$@"; }
}

apt_install() {
    apt-get -qq install -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1 || { tail -n 15 "$log" >&2; return 1; }
}

debian_mirror() { # the address this machine's own apt gets its Debian release from
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        sed -n "s/^$codename main //p" | grep -i debian | head -n 1
}

unpack() { # SUITE NAME...; false when that suite does not give all of them
    state=$tools/apt
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    echo "deb [signed-by=$keyring] $(debian_mirror) $1 main" >"$state/sources.list"
    shift
    programs=$*
    (
        cd "$state"
        set -- -qq -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=/dev/null \
            -o Dir::State::Lists="$state/lists" -o Dir::Cache="$state/cache" -o APT::Sandbox::User="$(id -un)" \
            -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        rm -f ./*.deb
        apt-get "$@" update && apt-get "$@" download $programs && for package in ./*.deb; do dpkg -x "$package" "$tools"; done
    ) >"$log" 2>&1 && [ -z "$(missing_tools $programs)" ]
}

missing_tools() { # NAME... -> those that do not run from build/tools
    for program; do
        "$tools/usr/bin/$program" --version >/dev/null 2>&1 || "$tools/usr/bin/$program" -version >/dev/null 2>&1 || echo "$program"
    done
}

bring() { # NAME...
    mkdir -p "$tools"
    for suite in ${PEBBLE_SUITES:-forky sid}; do
        if unpack "$suite" "$@"; then
            for package in "$tools"/apt/*.deb; do
                say "$(dpkg-deb -W --showformat '${Package} ${Version}' "$package") from $suite"
            done
            rm -rf "$tools/apt"
            return 0
        fi
    done
    tail -n 5 "$log" >&2
    say "no newer suite gave $*: this release's own packages are used (an older Pebble has no ARI and no profiles)"
    [ -z "$(missing_packages "$@")" ] || install_packages $(missing_packages "$@")
    mkdir -p "$tools/usr/bin" # so that the next run has nothing to do
    for program in "$@" pebble-challtestsrv; do
        [ -x "$tools/usr/bin/$program" ] || [ ! -x "/usr/bin/$program" ] || ln -sf "/usr/bin/$program" "$tools/usr/bin/$program"
    done
}

bring_certbot() { # the newest release, in a place of its own
    say "certbot from PyPI"
    python3 -m venv --clear "$tools/../certbot" && "$tools/../certbot/bin/pip" install --quiet --disable-pip-version-check certbot
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM
packages=$(grep -hv '^#' "$here/packages.txt" $([ "${1:-}" != bench ] || echo "$here/packages-bench.txt"))
missing=$(missing_packages $packages)
[ -z "$missing" ] || install_packages $missing
missing=$(missing_tools pebble caddy $([ "${1:-}" != bench ] || echo lego))
[ -z "$missing" ] || bring $missing
"$tools/../certbot/bin/certbot" --version >/dev/null 2>&1 || bring_certbot # its programs know their own place: moved, they do not run
