"""Adds each wheel's bill of materials to a release, in CycloneDX's format: `release/bills.py DIST`.

uv installs the wheel and what it needs as the wheel's platform would, in the versions of constraints.txt, and
CycloneDX's own tool lists what is there then. What the linker took into the native library no tool sees:
that is added, with its licences. Nothing in a bill depends on when or where it was made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
import venv
import zipfile
from datetime import datetime, timezone
from email import message_from_bytes
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from sums import SIGNATURE, SUMS, sums_text, wrong_sums
from wheelhouse import ROOT, SYSTEMS, System, run
from wheels import PLATFORMS, Part, bill_name, build_epoch, linked_in, zig_folder

SCHEMA = SchemaVersion.V1_6


def part_version(part: Part) -> str:
    """The version of something that zig links in: LLVM's and MinGW's own, where they say it, else zig's."""
    if part.version_in is None:
        return version("ziglang")
    path, pattern = part.version_in
    found = re.search(pattern, (zig_folder() / path).read_text())
    if found is None:
        sys.exit(f"zig's {path} does not tell the version of {part.name}: expected '{pattern}'")
    return ".".join(str(int(number)) for number in found.groups())


def metadata_of(wheel: Path) -> Message:
    """A wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def project_of(metadata: Message) -> str:
    """A pyproject.toml that says what the metadata says, from which CycloneDX's tool takes its subject."""
    needs = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    fields = {
        "name": metadata["Name"],
        "version": metadata["Version"],
        "description": metadata["Summary"],
        "license": metadata["License-Expression"] or metadata["License"],
        "dependencies": needs,
    }
    # Strings and lists of strings are the same in JSON and in TOML.
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
    return "[project]\n" + "".join(lines)


def installed(wheel: Path, system: System, work: Path) -> Bom:
    """What is there once a platform has installed a wheel, as CycloneDX's tool lists it."""
    venv.create(work / "venv")
    python = work / "venv" / "bin" / "python"
    uv = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python)
    limits = ("--constraint", ROOT / "constraints.txt", "--only-binary", ":all:")
    run(*uv, "--python-platform", system.target, *limits, wheel)
    (work / "pyproject.toml").write_text(project_of(metadata_of(wheel)))
    tool = (sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible")
    subject = ("--pyproject", work / "pyproject.toml", "--mc-type", "library")
    run(*tool, *subject, "--spec-version", SCHEMA.to_version(), "-o", work / "bill.json", python)
    return Bom.from_json(json.loads((work / "bill.json").read_text()))


def bill_of(wheel: Path, system: System, parts: list[Part]) -> bytes:
    """A wheel's bill of materials."""
    with tempfile.TemporaryDirectory() as folder:
        bom = installed(wheel, system, Path(folder))
    subject = bom.metadata.component
    if subject is None:
        sys.exit(f"CycloneDX's tool lists nothing for {wheel.name}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    subject.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=digest))
    for part in parts:
        inside = Component(
            name=part.name,
            version=part_version(part),
            bom_ref=f"linked-in-{part.name}",
            licenses=[LicenseExpression(part.licence)],
        )
        subject.components.add(inside)
        bom.register_dependency(subject, [inside])
    # Another run is to say the same.
    bom.metadata.timestamp = datetime.fromtimestamp(build_epoch(), timezone.utc)
    bom.serial_number = uuid5(NAMESPACE_URL, f"sha256:{digest}")
    text = make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=2) + "\n"
    wrong = JsonStrictValidator(SCHEMA).validate_str(text)
    if wrong is not None:
        sys.exit(f"the bill of {wheel.name} is not as CycloneDX demands: {wrong}")
    return text.encode()


def main() -> None:
    """Writes a bill for each wheel of a folder, and names them in its checksums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dist", type=Path, help="folder of `release/wheels.py`")
    dist: Path = parser.parse_args().dist
    wrong = wrong_sums(dist)
    if wrong:
        sys.exit("\n".join(wrong))
    systems = {system.wheel: system for system in SYSTEMS.values()}
    for platform in PLATFORMS:
        for wheel in dist.glob(f"*-{platform.tag}.whl"):
            bill = bill_of(wheel, systems[platform.tag], linked_in(platform))
            path = dist / bill_name(wheel.name)
            path.write_bytes(bill)
            print(f"{path}: {len(json.loads(bill)['components'])} packages")
    files = {path.name: path.read_bytes() for path in dist.iterdir() if path.name not in (SUMS, SIGNATURE)}
    (dist / SUMS).write_text(sums_text(files))


if __name__ == "__main__":
    main()
