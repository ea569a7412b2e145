# What tools/pmd and tools/check share: missing packages, and the environment in .venv. Sourced, POSIX sh.
# The caller has set program (its name, for messages) and stands in the checkout.

say() {
	printf '%s: %s\n' "$program" "$*" >&2
}

fail() {
	say "$*"
	exit 1
}

# quietly COMMAND...: its output is seen only if it fails.
quietly() {
	log=$(mktemp)
	if "$@" </dev/null >"$log" 2>&1 9<&-; then
		rm -f "$log"
	else
		tail -n 30 "$log" >&2
		rm -f "$log"
		return 1
	fi
}

# missing PACKAGE COMMAND...: adds PACKAGE to the list if COMMAND fails.
missing_packages=
missing() {
	package=$1
	shift
	"$@" >/dev/null 2>&1 || missing_packages="$missing_packages $package"
}

has_headers() {
	printf '#include <stdio.h>\n#include <linux/vfio.h>\n' | gcc -E -
}

find_run_packages() {
	missing python3 command -v python3
	missing python3-venv python3 -c 'import ensurepip, venv'
	missing gcc command -v gcc
	missing libc6-dev has_headers
	missing libudev1 python3 -c 'import ctypes; ctypes.CDLL("libudev.so.1")'
}

find_check_packages() {
	missing dpdk command -v dpdk-devbind.py
	missing dpdk-dev command -v dpdk-testpmd
	missing ethtool command -v ethtool
	missing iproute2 command -v ip
	missing iputils-ping command -v ping
	missing spin command -v spin
	missing tcpdump command -v tcpdump
	missing valgrind command -v valgrind
}

# Root on Debian gets what is missing; everybody else gets the command to type.
install_packages() {
	[ -n "$missing_packages" ] || return 0
	install="apt-get install -y --no-install-recommends$missing_packages"
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		fail "missing:$missing_packages; on Debian: sudo $install"
	fi
	say "installing$missing_packages"
	quietly apt-get update || say "apt-get update failed; trying with the lists as they are"
	quietly env DEBIAN_FRONTEND=noninteractive $install ||
		fail "cannot install$missing_packages; its message is above"
	missing_packages=
}

# What the environment was made from: where it is, which Python, and what the C libraries come from.
source_stamp() {
	{
		pwd -P
		python3 -c 'import sys; print(sys.base_prefix, sys.version)'
		cat pyproject.toml CMakeLists.txt pmd/csrc/*.[ch] tools/vm1/csrc/*.[ch]
	} | sha256sum | cut -d ' ' -f 1
}

# make_environment run|dev: .venv with the project installed in place, and for dev what the checks
# need. Quick when nothing changed. A dev environment stays one when pmd rebuilds it.
make_environment() {
	exec 9<.
	flock 9 # two first uses at once build one environment
	stamp=$(source_stamp)
	kind=$1
	if [ -f .venv/stamp ]; then
		read -r built_stamp built_kind <.venv/stamp
		[ "$built_kind" = dev ] && kind=dev
		if [ "$built_stamp $built_kind" = "$stamp $kind" ]; then
			exec 9<&-
			return 0
		fi
	fi
	if [ "$1" = dev ]; then find_check_packages; fi
	find_run_packages
	install_packages
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		fail "Python 3.11 or newer is needed; python3 is $(python3 --version)"
	say "setting up .venv"
	stamp=$(source_stamp)
	rm -f .venv/stamp
	build_environment "$kind" || fail "cannot set up .venv; its message is above"
	printf '%s %s\n' "$stamp" "$kind" >.venv/stamp
	exec 9<&-
}

# Without build isolation a C edit costs seconds: CMake and Ninja stay in .venv.
build_environment() {
	extras=
	[ "$1" = dev ] && extras='[dev]'
	quietly python3 -m venv .venv &&
		.venv/bin/python - >.venv/build-requirements.txt <<'EOS' &&
import tomllib
from pathlib import Path
build = tomllib.loads(Path("pyproject.toml").read_text())["build-system"]
print(*build["requires"], sep="\n")
EOS
		quietly .venv/bin/pip install -r .venv/build-requirements.txt &&
		quietly .venv/bin/pip install --no-build-isolation --editable ".$extras"
}
