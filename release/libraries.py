"""What a shared library shows to those who load it, and what it asks of the system, by the file's own tables.

Three formats have these tables: ELF (Linux), PE (Windows) and Mach-O (macOS). LIEF reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import lief

_DEBUG = (".debug", "__debug")


@dataclass(frozen=True)
class Library:
    """One shared library.

    Attributes:
        architecture: of the processors that run it, ``"X86_64"`` or ``"ARM64"``.
        shown: the names of the functions that it exports.
        asked: the libraries that the system's loader has to find for it.
        versions: the versions of their symbols that it refers to, such as ``GLIBC_2.17``.
        least_system: the oldest macOS that loads it; empty for other systems.
        stripped: whether it is without debug information and without names that nobody outside needs.
    """

    architecture: str
    shown: frozenset[str]
    asked: tuple[str, ...]
    versions: tuple[str, ...] = ()
    least_system: tuple[int, ...] = ()
    stripped: bool = True


def read_library(content: bytes) -> Library:
    """The tables of a library.

    Raises:
        ValueError: it is of none of the three formats.
    """
    binary = lief.parse(content)
    if isinstance(binary, lief.ELF.Binary):
        return _elf(binary)
    if isinstance(binary, lief.PE.Binary):
        return _pe(binary)
    if isinstance(binary, lief.MachO.Binary):
        return _mach_o(binary)
    raise ValueError(f"{len(content):,} bytes that are no ELF, PE or Mach-O library")


def _architecture(binary: lief.Binary) -> str:
    return binary.abstract.header.architecture.name


def _without_debug(binary: lief.Binary) -> bool:
    return not any(str(section.name).startswith(_DEBUG) for section in binary.sections)


def _elf(binary: lief.ELF.Binary) -> Library:
    versions = {
        str(version.name)
        for library in binary.symbols_version_requirement
        for version in library.get_auxiliary_symbols()
    }
    return Library(
        _architecture(binary),
        frozenset(str(symbol.name) for symbol in binary.exported_symbols),
        tuple(sorted(map(str, binary.libraries))),
        tuple(sorted(versions)),
        stripped=_without_debug(binary) and not list(binary.symtab_symbols),
    )


def _pe(binary: lief.PE.Binary) -> Library:
    return Library(
        _architecture(binary),
        frozenset(str(function.name) for function in binary.exported_functions),
        tuple(sorted(str(library.name) for library in binary.imports)),
        stripped=_without_debug(binary) and binary.header.numberof_symbols == 0,
    )


def _mach_o(binary: lief.MachO.Binary) -> Library:
    build = binary.build_version
    shown = frozenset(str(function.name).removeprefix("_") for function in binary.exported_functions)
    return Library(
        _architecture(binary),
        shown,
        # By load commands (LC_LOAD_DYLIB): a path in the text alone is none, nor is the library's own.
        tuple(
            sorted(
                str(library.name)
                for library in binary.libraries
                if library.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB
            )
        ),
        least_system=tuple(build.minos) if build is not None else (),
        stripped=_without_debug(binary),
    )
