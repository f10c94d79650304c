"""httpd's configuration as a tree of directives.

Contract: ``parse_config_dump(text)`` parses the output of ``httpd -t -D DUMP_CONFIG``, in
which httpd has resolved conditions, macros, variables and included files.
``parse_files(…)`` parses the files that ``-D DUMP_INCLUDES`` lists, for an httpd without
mod_info and for directives that the dump lacks (``LoadModule``).  Names of directives are
case-insensitive.  Pure; ``parse_files`` calls a function to read each file.

Sources: httpd's server/util.c (``ap_getword_conf``, ``ap_cfg_getline``),
modules/generators/mod_info.c, server/config.c (``DUMP_INCLUDES``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

# A line of the dump that is not a directive.
_IN_FILE: Final = re.compile(r"# In file: (.*)")
_LINE_NUMBER: Final = re.compile(r"#\s*(\d+):")
_VARIABLE: Final = re.compile(r"\$\{([^}:]+)\}")
_INCLUDED: Final = re.compile(r"(\s*)\((\*|\d+)\) (.*)")
# Conditional sections, which are not in the tree themselves.
_CONDITIONS: Final = {"ifmodule", "ifdefine", "ifversion", "iffile", "ifdirective", "ifsection"}


@dataclass
class Directive:
    """A directive, or a section with its directives.

    Attributes:
        name: as written.
        arguments: without their quotes.
        file, line: its place.
        children: the directives of a section.
    """

    name: str
    arguments: tuple[str, ...]
    file: str = ""
    line: int = 0
    is_section: bool = False
    children: list[Directive] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The place, for a message."""
        return f"{self.file}:{self.line}"

    def __str__(self) -> str:
        words = " ".join((self.name, *map(quote, self.arguments)))
        return f"<{words}>" if self.is_section else words

    def is_named(self, *names: str) -> bool:
        """Tell whether the directive has one of the names."""
        return self.name.lower() in {name.lower() for name in names}


def walk(directives: Iterable[Directive]) -> Iterator[Directive]:
    """Yield all directives; those of a section follow it."""
    for directive in directives:
        yield directive
        yield from walk(directive.children)


def find(directives: Iterable[Directive], *names: str) -> list[Directive]:
    """Return the directives of these names, in sections too."""
    return [directive for directive in walk(directives) if directive.is_named(*names)]


def section_of(directives: Iterable[Directive], wanted: Directive) -> Directive | None:
    """Return the innermost section that contains a directive, None without one.

    Sections like ``<RequireAll>`` do not count.
    """
    for directive in directives:
        for child in directive.children:
            if child is wanted:
                return directive
        if found := section_of(directive.children, wanted):
            return directive if found.name.lower().startswith("require") else found
    return None


def quote(argument: str) -> str:
    """Return an argument, quoted if necessary."""
    if argument and not re.search(r"[\s\"'\\]", argument):
        return argument
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def split_arguments(text: str) -> tuple[str, ...]:
    """Split the arguments of a directive like ``ap_getword_conf``."""
    words = []
    position, end = 0, len(text)
    while position < end:
        if text[position].isspace():
            position += 1
            continue
        quotes = text[position] if text[position] in "\"'" else ""
        position += len(quotes)
        word = ""
        while position < end:
            character = text[position]
            if character == "\\" and quotes and text[position + 1 : position + 2] in ("\\", quotes):
                word += text[position + 1]
                position += 2
                continue
            position += 1
            if character == quotes or (not quotes and character.isspace()):
                break
            word += character
        words.append(word)
    return tuple(words)


def parse_config_dump(text: str) -> list[Directive]:
    """Parse the output of ``-D DUMP_CONFIG``."""
    file, line = "", 0
    top: list[Directive] = []
    open_sections: list[Directive] = []
    for raw in text.splitlines():
        stripped = raw.strip()
        if match := _IN_FILE.fullmatch(stripped):
            file = match[1]
        elif match := _LINE_NUMBER.fullmatch(stripped):
            line = int(match[1])
        elif stripped:
            _add(stripped, file, line, top, open_sections)
    return top


def _add(
    stripped: str, file: str, line: int, top: list[Directive], open_sections: list[Directive]
) -> None:
    """Add a line to the tree."""
    if stripped.startswith("</"):
        if open_sections:
            open_sections.pop()
        return
    is_section = stripped.startswith("<")
    if is_section:
        stripped = stripped[1:].removesuffix(">")
    name, _, rest = stripped.partition(" ")
    directive = Directive(name, split_arguments(rest), file, line, is_section)
    (open_sections[-1].children if open_sections else top).append(directive)
    if is_section:
        open_sections.append(directive)


@dataclass
class IncludedFile:
    """A file that httpd reads.

    Attributes:
        path: of the file.
        line: the line of the file that includes it; 0 for the first one.
        files: the files that it includes.
    """

    path: str
    line: int
    files: list[IncludedFile] = field(default_factory=list)

    def paths(self) -> list[str]:
        """Return the paths of this file and of all files below it."""
        return [self.path, *(path for file in self.files for path in file.paths())]


def parse_includes(text: str) -> IncludedFile | None:
    """Parse the output of ``-D DUMP_INCLUDES``; None if it lists no file."""
    parents: list[tuple[int, IncludedFile]] = []
    root = None
    for raw in text.splitlines():
        match = _INCLUDED.fullmatch(raw)
        if match is None:
            continue
        depth = len(match[1])
        file = IncludedFile(match[3], 0 if match[2] == "*" else int(match[2]))
        while parents and parents[-1][0] >= depth:
            parents.pop()
        if parents:
            parents[-1][1].files.append(file)
        elif root is None:
            root = file
        parents.append((depth, file))
    return root


def parse_files(
    root: IncludedFile,
    read: Callable[[str], str],
    modules: Iterable[str],
    defines: Mapping[str, str],
) -> list[Directive]:
    """Return the tree of the files, with conditions on modules and defines resolved.

    Args:
        root: the first file, with those it includes.
        read: returns the text of a file; its exceptions propagate.
        modules: the loaded ones, for example ``ssl_module``.
        defines: those of ``Define`` and the environment.

    Macros, and conditions on versions, files, directives and sections, are not resolved:
    such a condition counts as true.
    """
    top: list[Directive] = []
    open_sections: list[Directive] = []
    _parse_file(root, read, {name.lower() for name in modules}, defines, top, open_sections)
    return top


def _parse_file(
    file: IncludedFile,
    read: Callable[[str], str],
    modules: set[str],
    defines: Mapping[str, str],
    top: list[Directive],
    open_sections: list[Directive],
) -> None:
    # Whether each open condition holds.
    counts: list[bool] = []
    for number, text in _logical_lines(read(file.path)):
        line = _VARIABLE.sub(lambda match: defines.get(match[1], match[0]), text)
        name = re.split(r"[\s>]", line.lstrip("</"), maxsplit=1)[0].lower()
        if name in _CONDITIONS and line.startswith("<"):
            if line.startswith("</"):
                counts[-1:] = []
            else:
                condition = "".join(split_arguments(line.strip("<>").partition(" ")[2])[:1])
                counts.append(_holds(name, condition, modules, defines))
        elif all(counts):
            if name in ("include", "includeoptional"):
                for included in file.files:
                    if included.line == number:
                        _parse_file(included, read, modules, defines, top, open_sections)
            else:
                _add(line, file.path, number, top, open_sections)


def _holds(section: str, condition: str, modules: set[str], defines: Mapping[str, str]) -> bool:
    wanted = condition.removeprefix("!")
    if section == "ifmodule":
        # A module is named by itself or by its source file.
        name = wanted.lower()
        if name.endswith(".c"):
            name = name.removesuffix(".c").removeprefix("mod_") + "_module"
        holds = name in modules or f"mpm_{name}" in modules
    elif section == "ifdefine":
        holds = wanted in defines
    else:
        return True
    return holds != condition.startswith("!")


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each directive with the number of its last line, and continuations joined.

    httpd numbers directives in the same way.
    """
    joined = ""
    for number, raw in enumerate(text.splitlines(), 1):
        if raw.endswith("\\"):
            joined += raw[:-1]
            continue
        line = (joined + raw).strip()
        joined = ""
        if line and not line.startswith("#"):
            yield number, line
