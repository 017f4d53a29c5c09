"""Signs the checksums of a release with the maintainer's key, without a network: `make sign KEY=FILE`.

OpenSSH does it (`ssh-keygen -Y`, since 8.1): Linux, macOS and Windows bring it, its keys may lie on a
hardware token or in an agent, and there is no key server to trust. Whoever may sign stands in
`release/allowed_signers`; a key that does not is refused, as nobody could verify with it. Only the standard
library is needed, so the machine with the key needs the repository, `dist/` and Python.
"""

from __future__ import annotations

import argparse
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from changelog import unreleased, wrong_changelog
from sums import SIGNATURE, SUMS, wrong_sums

ROOT = Path(__file__).parent.parent
SIGNERS = ROOT / "release" / "allowed_signers"
NAMESPACE = "msmamba-release"
"""A signature that the key made for anything else is none of a release."""
SIGNER = "msmamba"
"""The name in `allowed_signers`."""


def ssh_keygen(
    *arguments: str | Path, given: bytes, stderr: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs it; for a passphrase it asks on the terminal."""
    program = shutil.which("ssh-keygen")
    if program is None:
        sys.exit("there is no ssh-keygen: install OpenSSH's client (openssh-client on Debian)")
    command = [program, *map(str, arguments)]
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=stderr, check=False)


def may_sign(signers: Path, content: bytes, signature: Path) -> str | None:
    """None where a signature of ``content`` is by one of the signers, else what OpenSSH says."""
    who = ("-f", signers, "-I", SIGNER, "-n", NAMESPACE, "-s", signature)
    done = ssh_keygen("-Y", "verify", *who, given=content, stderr=subprocess.STDOUT)
    return done.stdout.decode(errors="replace").strip() or "refused" if done.returncode else None


def line_of(key: Path) -> str:
    """What `allowed_signers` needs for a key: the public half lies beside it."""
    public = key if key.suffix == ".pub" else key.with_name(f"{key.name}.pub")
    if not public.is_file():
        return f"the one that 'ssh-keygen -y -f {key}' prints, after '{SIGNER} namespaces=\"{NAMESPACE}\" '"
    return f'{SIGNER} namespaces="{NAMESPACE}" {" ".join(public.read_text().split()[:2])}'


def sign(dist: Path, key: Path, signers: Path) -> Path:
    """Writes the signature of SHA256SUMS and returns its path; ends where anything is not as it should be."""
    wrong = wrong_sums(dist)
    if wrong:
        sys.exit("\n".join(wrong))
    if not key.is_file():
        sys.exit(f"there is no key '{key}': make one by 'ssh-keygen -t ed25519 -f {key}'")
    content = (dist / SUMS).read_bytes()
    # Through standard input, as a file's signature would be written beside it at once. What it says (of a
    # token that wants to be touched, or why it refuses) is for whoever sits there.
    done = ssh_keygen("-Y", "sign", "-f", key, "-n", NAMESPACE, given=content)
    if done.returncode:
        sys.exit(f"'{key}' did not sign: ssh-keygen's reason stands above")
    with tempfile.TemporaryDirectory(dir=dist.parent) as folder:
        made = Path(folder, SIGNATURE)
        made.write_bytes(done.stdout)
        refused = may_sign(signers, content, made)
        if refused is not None:
            sys.exit(f"nobody could verify that: {refused}\nadd to '{signers}', and commit: {line_of(key)}")
        made.replace(dist / SIGNATURE)
    return dist / SIGNATURE


def main() -> None:
    """Signs, unless the changelog says that this is no release yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dist", type=Path, help="folder of `make wheels`")
    parser.add_argument(
        "--key", type=Path, required=True, help="the private key; of one in an agent the public"
    )
    parser.add_argument("--signers", type=Path, default=SIGNERS, help="who may sign (default: %(default)s)")
    options = parser.parse_args()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version = str(runpy.run_path(str(ROOT / "version.py"))["__version__"])
    wrong = wrong_changelog(changelog, version)
    if unreleased(changelog):
        wrong.append(f"CHANGELOG.md has entries under 'Unreleased': cut them into version {version}")
    if not (options.dist / f"msmamba-{version}.tar.gz").is_file():
        wrong.append(f"'{options.dist}' does not hold version {version}: make wheels, make release-check")
    if wrong:
        sys.exit("\n".join(wrong))
    signed = sign(options.dist, options.key.expanduser(), options.signers)
    print(f"{signed}: to be published beside {SUMS}")


if __name__ == "__main__":
    main()
